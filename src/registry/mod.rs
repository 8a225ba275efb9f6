//! What this node knows: clients, resources and keys in memory, and how fresh that is.
//!
//! Requests read these snapshots and no database. `app::sync` alone replaces them; everybody else
//! can ask it, through [`Freshness`], for one more look at the database.

mod freshness;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

pub use self::freshness::Freshness;
use crate::{
    domain::{
        client::Client,
        consent::Permission,
        id::{ClientId, ResourceId},
        resource::{Resource, ResourceUri},
    },
    keys::{mac::MacRing, ring::KeyRing},
};

/// A permission for the eyes of people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The scope token; empty where it is for the resource alone.
    pub token: String,
    /// What the token means, where the resource has words for it.
    pub description: Option<String>,
    /// The name of the resource, or its identifier where it is registered no more.
    pub resource: String,
}

/// Every client and resource, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    clients: HashMap<ClientId, Arc<Client>>,
    resources: HashMap<ResourceUri, Arc<Resource>>,
    userinfo: Option<Arc<Resource>>,
    origins: HashSet<String>,
    /// Those of clients with session tokens.
    session_origins: HashSet<String>,
}

impl Registry {
    /// A registry of these clients and resources.
    pub fn new(
        clients: impl IntoIterator<Item = Client>,
        resources: impl IntoIterator<Item = Resource>,
    ) -> Self {
        let clients = clients
            .into_iter()
            .map(|client| (client.client_id.clone(), Arc::new(client)))
            .collect();
        let mut registry = Self {
            clients,
            ..Self::default()
        };
        registry.set_resources(resources);
        registry.collect_origins();
        registry
    }

    /// Takes in what has become of some clients; `None` is one that is gone.
    pub fn update_clients(
        &mut self,
        clients: impl IntoIterator<Item = (ClientId, Option<Client>)>,
    ) {
        for (id, client) in clients {
            match client {
                Some(client) => self.clients.insert(id, Arc::new(client)),
                None => self.clients.remove(&id),
            };
        }
        self.collect_origins();
    }

    /// Replaces the resources.
    pub fn set_resources(&mut self, resources: impl IntoIterator<Item = Resource>) {
        self.resources = resources
            .into_iter()
            .map(|resource| (resource.resource.clone(), Arc::new(resource)))
            .collect();
        let mut resources = self.resources.values();
        self.userinfo = resources
            .find(|resource| resource.id == ResourceId::USERINFO)
            .cloned();
    }

    /// Every client.
    pub fn clients(&self) -> impl Iterator<Item = &Arc<Client>> {
        self.clients.values()
    }

    /// The client of this id.
    pub fn client(&self, id: &ClientId) -> Option<&Arc<Client>> {
        self.clients.get(id)
    }

    /// The resource of this identifier.
    pub fn resource(&self, uri: &ResourceUri) -> Option<&Arc<Resource>> {
        self.resources.get(uri)
    }

    /// Whether this is the admin interface's own resource.
    pub fn is_admin(&self, uri: &ResourceUri) -> bool {
        self.resource(uri)
            .is_some_and(|resource| resource.id == ResourceId::ADMIN)
    }

    /// The userinfo endpoint as a resource.
    pub fn userinfo(&self) -> Option<&Arc<Resource>> {
        self.userinfo.as_ref()
    }

    /// A permission as pages tell it to whoever gives it.
    pub fn told(&self, (uri, token): &Permission) -> Told {
        let resource = self.resource(uri);
        Told {
            token: token.clone(),
            description: resource.and_then(|it| it.scope_descriptions.get(token).cloned()),
            resource: resource.map_or_else(|| uri.to_string(), |it| it.name.clone()),
        }
    }

    /// Whether some client has registered this origin for its pages.
    pub fn allows_origin(&self, origin: &str) -> bool {
        self.origins.contains(origin)
    }

    /// Whether this is an origin of pages that use the session of their browser.
    pub fn uses_sessions(&self, origin: &str) -> bool {
        self.session_origins.contains(origin)
    }

    fn collect_origins(&mut self) {
        let enabled = self.clients.values().filter(|client| !client.disabled);
        self.session_origins = enabled
            .clone()
            .filter(|client| client.session_tokens)
            .flat_map(|client| client.allowed_origins.iter().cloned())
            .collect();
        self.origins = enabled
            .flat_map(|client| client.allowed_origins.iter().cloned())
            .collect();
    }
}

/// The snapshots of this node.
pub struct Snapshots {
    registry: ArcSwap<Registry>,
    ring: ArcSwap<KeyRing>,
    mac_ring: ArcSwap<MacRing>,
    /// When the database was last read, in milliseconds of the monotonic clock.
    read_at_ms: AtomicU64,
    /// How to ask for a newer state.
    pub freshness: Freshness,
}

impl Snapshots {
    /// The first snapshots, read when the monotonic clock showed `read_at`.
    pub fn new(registry: Registry, ring: KeyRing, mac_ring: MacRing, read_at: Duration) -> Self {
        let snapshots = Self {
            registry: ArcSwap::from_pointee(registry),
            ring: ArcSwap::from_pointee(ring),
            mac_ring: ArcSwap::from_pointee(mac_ring),
            read_at_ms: AtomicU64::new(0),
            freshness: Freshness::default(),
        };
        snapshots.confirm(read_at);
        snapshots
    }

    /// The clients and resources.
    pub fn registry(&self) -> arc_swap::Guard<Arc<Registry>> {
        self.registry.load()
    }

    /// The signing keys.
    pub fn ring(&self) -> arc_swap::Guard<Arc<KeyRing>> {
        self.ring.load()
    }

    /// The refresh-MAC keys.
    pub fn mac_ring(&self) -> arc_swap::Guard<Arc<MacRing>> {
        self.mac_ring.load()
    }

    /// Replaces the clients and resources.
    pub fn set_registry(&self, registry: Registry) {
        self.registry.store(Arc::new(registry));
    }

    /// Replaces the signing keys.
    pub fn set_ring(&self, ring: KeyRing) {
        self.ring.store(Arc::new(ring));
    }

    /// Replaces the refresh-MAC keys.
    pub fn set_mac_ring(&self, ring: MacRing) {
        self.mac_ring.store(Arc::new(ring));
    }

    /// Notes that the snapshots show what the database held when the monotonic clock showed
    /// `read_at`.
    pub fn confirm(&self, read_at: Duration) {
        let millis = u64::try_from(read_at.as_millis()).unwrap_or(u64::MAX);
        self.read_at_ms.fetch_max(millis, Ordering::Relaxed);
    }

    /// For how long the database has not been read, given the monotonic clock.
    pub fn age(&self, monotonic: Duration) -> Duration {
        monotonic.saturating_sub(Duration::from_millis(
            self.read_at_ms.load(Ordering::Relaxed),
        ))
    }
}
