//! Threads for long computations, which give way to all others.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// How much these threads step back, on the scale of nice(2): of a busy processor whoever answers
/// requests gets three parts, and they get one.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// A runtime that has threads for blocking work and nothing else. What has begun when it is dropped is
/// not waited for.
pub(super) struct BackgroundThreads {
    /// Where work is given to them.
    pub(super) handle: Handle,
    runtime: Option<Runtime>,
}

impl BackgroundThreads {
    /// Threads that start when they are needed.
    pub(super) fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .thread_name("background")
            .on_thread_start(give_way)
            .build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }
}

impl Drop for BackgroundThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Lowers the priority of the calling thread. Elsewhere than on Linux that would be the whole process.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}
