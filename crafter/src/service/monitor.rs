//! `Monitor`: events, and counters at intervals.

use std::{collections::HashMap, rc::Rc, time::Duration};

use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};
use zlink::{Call, Reply, varlink_service};

use super::{
    call::{AnyCall, BoundedConnection, parameters},
    caller::Caller,
    methods,
    served_lease::ServedLease,
    state::{Service, event, event_of},
};
use crate::protocol::wire::{self, Event, Events, MonitorCall};

/// The default interval of counter events in milliseconds.
const INTERVAL: u64 = 1000;

/// Sends events until the client closes the connection.
pub(super) async fn run(
    service: &Rc<Service>,
    caller: &Caller,
    mut connection: BoundedConnection,
    call: &Call<AnyCall>,
) -> zlink::Result<()> {
    let wanted = match parameters::<MonitorCall>(call.method()) {
        Ok(wanted) => wanted,
        Err(fault) => return connection.send_error(&fault, Vec::new()).await,
    };
    if !call.more() {
        return connection.send_error(&varlink_service::Error::ExpectedMore, Vec::new()).await;
    }
    let mut events = service.events();
    let millis = wanted.interval_ms.unwrap_or(INTERVAL).clamp(100, 3_600_000);
    let mut ticks = interval(Duration::from_millis(millis));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch { whose: methods::visible(service, caller), seen: HashMap::new() };
    watch.look(service, caller);
    let (mut read, mut write) = connection.split();
    // An empty reply at once confirms the subscription.
    let mut pending = Some(Vec::new());
    loop {
        if let Some(events) = pending.take() {
            write.send_reply(&Reply::new(Some(Events { events })).set_continues(Some(true)), Vec::new()).await?;
        }
        tokio::select! {
            // The client only closes the connection.
            end = read.receive_call::<AnyCall>() => return end.map(drop),
            event = events.recv() => match event {
                Ok(event) => pending = watch.sees(service, caller, &event).then(|| vec![event]),
                Err(RecvError::Lagged(count)) => {
                    let message = Some(format!("{count} events were lost because the client read too slowly"));
                    pending = Some(vec![Event { event: "lost".to_owned(), count: Some(count), message, ..event_now() }]);
                }
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = ticks.tick() => pending = Some(watch.look(service, caller)).filter(|events| !events.is_empty()),
        }
    }
}

fn event_now() -> Event {
    event()
}

/// The user whose events a client may see, and the counters that it has received.
struct Watch {
    whose: Option<u32>,
    /// By lease: delivered, delivered bytes, suppressed, lost, refused, lost to full queues.
    seen: HashMap<u64, [u64; 6]>,
}

impl Watch {
    fn sees(&mut self, service: &Service, caller: &Caller, event: &Event) -> bool {
        self.whose = methods::visible(service, caller);
        self.whose.is_none() || event.user.is_none() || event.user == self.whose
    }

    /// Events for the counters that changed since the last call.
    fn look(&mut self, service: &Service, caller: &Caller) -> Vec<Event> {
        // A reloaded policy may show less.
        self.whose = methods::visible(service, caller);
        let mut events = Vec::new();
        let mut seen = HashMap::new();
        for lease in service.leases_after(0) {
            if self.whose.is_some_and(|user| user != lease.subject().user) {
                continue;
            }
            let now = counted(&lease);
            let before = self.seen.get(&lease.terms.number).copied().unwrap_or_default();
            let more = |at: usize| now[at] - before[at];
            for (at, kind) in [(0, "delivered"), (2, "suppressed"), (3, "lost"), (4, "refused")] {
                if more(at) > 0 {
                    let bytes = (at == 0).then(|| more(1));
                    let message = (kind == "lost").then(|| losses(more(5), more(at) - more(5)));
                    let count = Some(more(at));
                    events.push(Event { event: kind.to_owned(), count, bytes, message, ..event_of(&lease) });
                }
            }
            seen.insert(lease.terms.number, now);
        }
        self.seen = seen;
        events
    }
}

/// Why packets were lost.
fn losses(queue_full: u64, unread: u64) -> String {
    let queue = format!("{queue_full} found no room in the lease's share of the receive queues");
    let socket = format!("{unread} found no room in the socket, which the client reads too slowly");
    match (queue_full, unread) {
        (_, 0) => queue,
        (0, _) => socket,
        _ => format!("{queue}, {socket}"),
    }
}

fn counted(lease: &ServedLease) -> [u64; 6] {
    lease.count_lost();
    let tally = lease.tally.borrow();
    let wire::Account { delivered, delivered_bytes, suppressed, lost, refused, queue_full, .. } = *tally;
    [delivered, delivered_bytes, suppressed, lost, refused, queue_full]
}
