//! The admin interface answers as its description says, whatever it is asked.

use std::process::{Command, Stdio};

use super::{show, turn};
use crate::support::{
    database::{Database, Engine},
    oracle,
    process::{Credentials, Installation},
};

/// How many requests are made up for each call.
const EXAMPLES: &str = "2";

/// How long that may take, in seconds.
const LONGEST: &str = "40";

/// Schemathesis reads the description and makes up requests, good and bad ones. No answer may be one
/// of 5xx, or one that the description does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_to_a_made_up_request_is_one_that_the_description_knows() {
    let _turn = turn().await;
    let database = Database::create(Engine::Postgres).await;
    let installation = Installation::production(database.url())
        .await
        .with("limits.requests_per_minute_per_client", 0);
    let node = installation.start().await;
    let scope = "clients:read clients:write events:read families:read families:write keys:read \
                 keys:rotate resources:read resources:write revocations:write users:read users:write";
    let create = [
        "clients",
        "create",
        "--operator",
        "--name",
        "tester",
        "--scope",
        scope,
    ];
    let created = installation.json(&create).await;
    let operator = Credentials::of(&created);
    let interop = oracle::folder();
    let folder = tempfile::tempdir().unwrap();
    // Bounded by the time it is given, on a thread that nothing else of this test needs.
    let run = || {
        Command::new(interop.join("venv/bin/schemathesis"))
            .args(["run", "--no-color", "--phases", "examples,coverage,fuzzing"])
            .args(["--max-examples", EXAMPLES, "--max-time", LONGEST])
            .args(["--seed", "1", "--generation-deterministic"])
            .args(["--request-timeout", "20", "--continue-on-failure"])
            .args([
                "--exclude-checks",
                "positive_data_acceptance,negative_data_rejection,ignored_auth",
            ])
            .arg(node.admin_url("/admin/v1/openapi.json"))
            .env("SCHEMATHESIS_HOOKS", "operator_token")
            .env("PYTHONPATH", &interop)
            .env("TOKEN_ENDPOINT", node.url("/oauth2/token"))
            .env("RESOURCE", created["resources"][0].as_str().unwrap())
            .env("CLIENT_ID", &operator.id)
            .env("CLIENT_SECRET", &operator.secret)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let mut output = run();
    // Where this machine stood still, some would have had to wait for too long. What is wrong is as wrong
    // the second time: the requests are the same.
    if !output.status.success() && String::from_utf8_lossy(&output.stdout).contains("[503]") {
        output = run();
    }
    let report = String::from_utf8_lossy(&output.stdout);
    show(&report);
    assert!(
        output.status.success(),
        "{report}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
