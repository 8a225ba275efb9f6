//! What must hold of every input, for the fuzzer and for the tests that replay the corpus.

pub mod issuer;
pub mod verifier;
