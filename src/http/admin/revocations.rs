//! Revocations of access tokens.

use super::call::{Call, Outcome, answer};
use crate::admin::revocation::{RevocationRequest, Target};

pub(super) async fn revoke(mut call: Call) -> Outcome {
    let target = RevocationRequest::read(std::mem::take(&mut call.body))?;
    if let Target::Client(id) = &target {
        // Again and again it would keep a client out.
        call.clients().within_authority(id).await?;
    }
    call.admin()
        .revocations
        .revoke(&target, &call.cause(None))
        .await?;
    Ok(answer(&target.document()))
}
