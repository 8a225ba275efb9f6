//! Revocations of access tokens.

use super::call::{Call, Outcome, answer};
use crate::admin::revocation::RevocationRequest;

pub(super) async fn revoke(mut call: Call) -> Outcome {
    let target = RevocationRequest::read(std::mem::take(&mut call.body))?;
    call.admin()
        .revocations
        .revoke(&target, &call.cause(None))
        .await?;
    Ok(answer(&target.document()))
}
