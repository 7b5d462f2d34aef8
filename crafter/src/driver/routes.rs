//! A cache of routes. The kernel is asked again after a few seconds and when addresses or links change, not for every
//! packet.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    datapath::route::{self, Route},
    error::Result,
};

/// Age at which a route is looked up again.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The maximum number of cached routes; the oldest is removed when the cache is full.
const KEPT: usize = 65_536;

/// The same for the cache of an interface of the service, which all users of the interface share.
const KEPT_BY_SERVICE: usize = 4096;

type Key = (IpAddr, Option<IpAddr>);

/// Routes by destination and requested source address.
pub(crate) struct Routes {
    cache: Mutex<Cache>,
    resolver: Resolver,
    kept: usize,
}

#[derive(Default)]
struct Cache {
    known: HashMap<Key, (Arc<Route>, Instant)>,
    /// The keys of `known`, in the order of insertion.
    order: VecDeque<Key>,
}

/// What a lookup includes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Resolver {
    /// The route and the next hop's Ethernet address.
    #[default]
    Kernel,
    /// The same, with a limit for the next hop to answer.
    KernelWithin(Duration),
    /// Only the route. The service finds the next hop; to make the kernel resolve it needs privileges.
    WithoutHop,
}

impl Routes {
    /// Makes an empty cache.
    pub(crate) fn new(resolver: Resolver) -> Self {
        Self { cache: Mutex::default(), resolver, kept: KEPT }
    }

    /// Makes an empty cache for an interface of the service, whose routes the caller looks up.
    #[cfg(feature = "service")]
    pub(crate) fn of_service() -> Self {
        Self { kept: KEPT_BY_SERVICE, ..Self::new(Resolver::Kernel) }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clears the cache after a change of the network.
    pub(crate) fn forget(&self) {
        *self.lock() = Cache::default();
    }

    /// The route to `destination`, if it is cached and fresh.
    pub(crate) fn known(&self, destination: IpAddr, source: Option<IpAddr>) -> Option<Arc<Route>> {
        let known = &self.lock().known;
        known.get(&(destination, source)).filter(|(_, found)| found.elapsed() < MAX_AGE).map(|(route, _)| route.clone())
    }

    /// Like [`known`](Self::known), but may return a stale route while it is looked up again; `true` if stale.
    pub(crate) fn known_or_old(&self, destination: IpAddr, source: Option<IpAddr>) -> Option<(Arc<Route>, bool)> {
        let cache = self.lock();
        let (route, found) = cache.known.get(&(destination, source))?;
        let age = found.elapsed();
        (age < 2 * MAX_AGE).then(|| (route.clone(), age >= MAX_AGE))
    }

    /// Removes the route to `destination` from the cache.
    pub(crate) fn forget_one(&self, destination: IpAddr, source: Option<IpAddr>) {
        let cache = &mut *self.lock();
        let key = (destination, source);
        if cache.known.remove(&key).is_some() {
            cache.order.retain(|other| *other != key);
        }
    }

    /// Adds a route that was looked up.
    pub(crate) fn insert(&self, destination: IpAddr, source: Option<IpAddr>, route: Route) -> Arc<Route> {
        let (key, route) = ((destination, source), Arc::new(route));
        let cache = &mut *self.lock();
        if cache.known.insert(key, (route.clone(), Instant::now())).is_none() {
            cache.order.push_back(key);
            if cache.order.len() > self.kept
                && let Some(oldest) = cache.order.pop_front()
            {
                cache.known.remove(&oldest);
            }
        }
        route
    }

    /// Looks up the route to `destination` over `interface` (the same in every call) and from `source`, if those are
    /// given.
    pub(crate) async fn find(
        &self,
        interface: Option<&str>,
        destination: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<Arc<Route>> {
        if let Some(route) = self.known(destination, source) {
            return Ok(route);
        }
        let route = match self.resolver {
            Resolver::Kernel => route::resolve(destination, interface, source).await?,
            Resolver::KernelWithin(limit) => route::resolve_within(destination, interface, source, limit).await?,
            Resolver::WithoutHop => route::without_hop(destination, interface, source).await?,
        };
        Ok(self.insert(destination, source, route))
    }
}
