//! Routes found lately: the kernel is asked again every few seconds, and when addresses or links change, not for every
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

/// How long a route found is used before the kernel is asked again.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Routes kept; a scan of more destinations than that forgets them all and begins anew.
const KEPT: usize = 65_536;

type Key = (IpAddr, Option<IpAddr>);

/// Routes by destination and source address asked for.
#[derive(Default)]
pub(crate) struct Routes {
    known: Mutex<HashMap<Key, (Arc<Route>, Instant)>>,
    resolver: Resolver,
}

/// How far routes are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Resolver {
    /// Up to the next hop's Ethernet address.
    #[default]
    Kernel,
    /// Without it: the service finds it, and to make the kernel ask takes privileges.
    WithoutHop,
}

impl Routes {
    /// No routes yet.
    pub(crate) fn new(resolver: Resolver) -> Self {
        Self { known: Mutex::default(), resolver }
    }

    /// Forgets all: something of this host's network has changed.
    pub(crate) fn forget(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The route to `destination` if it was found lately.
    pub(crate) fn known(&self, destination: IpAddr, source: Option<IpAddr>) -> Option<Arc<Route>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(destination, source)).filter(|(_, found)| found.elapsed() < MAX_AGE).map(|(route, _)| route.clone())
    }

    /// Like [`known`](Self::known), but may return a stale route for as long as the kernel is asked again; `true` if stale.
    pub(crate) fn known_or_old(&self, destination: IpAddr, source: Option<IpAddr>) -> Option<(Arc<Route>, bool)> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (route, found) = known.get(&(destination, source))?;
        let age = found.elapsed();
        (age < 2 * MAX_AGE).then(|| (route.clone(), age >= MAX_AGE))
    }

    /// Forgets the route to `destination`.
    pub(crate) fn forget_one(&self, destination: IpAddr, source: Option<IpAddr>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(&(destination, source));
    }

    /// The route to `destination`, over `interface` (always the same one) and with `source` if those are given.
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
