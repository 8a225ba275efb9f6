//! Benchmarks of Countersign: see `docs/performance.md`.
