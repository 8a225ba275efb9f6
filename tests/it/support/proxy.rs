//! What stands between a node and Postgres, and can stop answering.

use std::path::Path;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        UnixListener, UnixStream,
        unix::{ReadHalf, WriteHalf},
    },
    sync::watch,
    task::JoinSet,
};
use url::Url;

/// How the server's socket is named in its folder.
const SOCKET: &str = ".s.PGSQL.5432";

/// How a node ends a transaction whose changes are to last.
const COMMIT: &[u8] = b"COMMIT\0";

/// Which connections answer.
#[derive(Clone, Copy, Debug, Default)]
struct Ice {
    /// Connections of earlier rounds are frozen.
    round: u64,
    /// So is every one that is still to come.
    for_good: bool,
    /// So is every one that commits something, right after the server has been told to.
    commits: bool,
}

/// Stands between a node and the server; its connections can be frozen. Ends when it is dropped.
pub(crate) struct Proxy {
    url: String,
    folder: TempDir,
    ice: watch::Sender<Ice>,
    /// How many connections answer at this moment.
    alive: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// In front of the server of a database, whose URL names the folder of its socket.
    pub(crate) fn start(direct: &str) -> Self {
        let url = Url::parse(direct).unwrap();
        let (_, server) = url.query_pairs().find(|(name, _)| name == "host").unwrap();
        let server = Path::new(&*server).join(SOCKET);
        // In /tmp because the path of a socket must be short.
        let folder = tempfile::Builder::new()
            .prefix("countersign-proxy.")
            .tempdir_in("/tmp")
            .unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let ice = watch::Sender::new(Ice::default());
        let (count, alive) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let ices = ice.subscribe();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = UnixStream::connect(&server).await.unwrap();
                connections.spawn(carry(near, far, ices.clone(), count.clone()));
            }
        });
        Self {
            url: direct.to_owned(),
            folder,
            ice,
            alive,
            _tasks: tasks,
        }
    }

    /// Lets no connection answer any more that is open now; there has to be one.
    pub(crate) fn freeze(&self) {
        assert!(*self.alive.borrow() > 0, "nothing is there to be frozen");
        self.ice.send_modify(|ice| ice.round += 1);
    }

    /// Lets no connection answer ever again.
    pub(crate) fn freeze_for_good(&self) {
        self.ice.send_modify(|ice| ice.for_good = true);
        self.freeze();
    }

    /// From now on, whatever is committed is committed, and nobody is told so.
    pub(crate) fn lose_answers_to_commits(&self) {
        self.ice.send_modify(|ice| ice.commits = true);
    }

    /// The URL of the database by this way.
    pub(crate) fn url(&self) -> String {
        let mut url = Url::parse(&self.url).unwrap();
        url.query_pairs_mut()
            .clear()
            .append_pair("host", self.folder.path().to_str().unwrap());
        url.into()
    }
}

/// Forwards both ways until one side ends, or for as long as the connection is not frozen.
async fn carry(
    mut near: UnixStream,
    mut far: UnixStream,
    mut ice: watch::Receiver<Ice>,
    alive: watch::Sender<usize>,
) {
    let begun = ice.borrow().round;
    let ices = ice.clone();
    alive.send_modify(|count| *count += 1);
    let frozen = {
        let (mut from_node, mut to_node) = near.split();
        let (mut from_server, mut to_server) = far.split();
        tokio::select! {
            biased;
            _ = ice.wait_for(|ice| ice.for_good || ice.round > begun) => true,
            // Before the answer to what it forwards is looked at.
            commits = forward(&mut from_node, &mut to_server, &ices) => commits,
            _ = copy(&mut from_server, &mut to_node) => false,
        }
    };
    alive.send_modify(|count| *count -= 1);
    if frozen {
        // Stays open until the proxy ends.
        std::future::pending::<()>().await;
    }
}

/// Forwards what a node says until it has ended; or until it has said to commit, if nobody is to be
/// told of that.
async fn forward(
    node: &mut ReadHalf<'_>,
    server: &mut WriteHalf<'_>,
    ice: &watch::Receiver<Ice>,
) -> bool {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let said = match node.read(&mut buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(count) => &buffer[..count],
        };
        if server.write_all(said).await.is_err() {
            return false;
        }
        let commits = said.windows(COMMIT.len()).any(|part| part == COMMIT);
        if commits && ice.borrow().commits {
            return true;
        }
    }
}
