//! A cache of routes. The kernel is asked again after a few seconds and when addresses or links change, not for every
//! packet.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    datapath::route::{self, Route},
    error::Result,
};

/// Age at which a route is looked up again.
const MAX_AGE: Duration = Duration::from_secs(5);

/// The most cached routes; the cache is cleared when it is full.
const KEPT: usize = 65_536;

type Key = (IpAddr, Option<IpAddr>);

/// Routes by destination and requested source address.
#[derive(Default)]
pub(crate) struct Routes {
    known: Mutex<HashMap<Key, (Arc<Route>, Instant)>>,
    resolver: Resolver,
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
        Self { known: Mutex::default(), resolver }
    }

    /// Clears the cache after a change of the network.
    pub(crate) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The route to `destination`, if it is cached and fresh.
    pub(crate) fn known(&self, destination: IpAddr, source: Option<IpAddr>) -> Option<Arc<Route>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(destination, source)).filter(|(_, found)| found.elapsed() < MAX_AGE).map(|(route, _)| route.clone())
    }

    /// Like [`known`](Self::known), but may return a stale route while it is looked up again; `true` if stale.
    pub(crate) fn known_or_old(&self, destination: IpAddr, source: Option<IpAddr>) -> Option<(Arc<Route>, bool)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (route, found) = known.get(&(destination, source))?;
        let age = found.elapsed();
        (age < 2 * MAX_AGE).then(|| (route.clone(), age >= MAX_AGE))
    }

    /// Removes the route to `destination` from the cache.
    pub(crate) fn forget_one(&self, destination: IpAddr, source: Option<IpAddr>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&(destination, source));
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
        let route = Arc::new(route);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert((destination, source), (route.clone(), Instant::now()));
        Ok(route)
    }
}
