//! `Monitor`: events, and counters at intervals.

use std::{collections::HashMap, io, rc::Rc, time::Duration};

use tokio::{
    sync::broadcast::error::RecvError,
    time::{MissedTickBehavior, interval},
};
use zlink::{Reply, varlink_service};

use super::{
    call::{AnyCall, Channel, parameters},
    caller::Caller,
    methods,
    served_lease::ServedLease,
    state::{Service, event, event_of},
};
use crate::protocol::wire::{self, Event, Events, Fault, MonitorCall};

/// The default interval of counter events in milliseconds.
const INTERVAL: u64 = 1000;

/// The most events of a reply.
const PAGE: usize = 500;

/// Sends events until the client closes the connection, or sends anything.
pub(super) async fn run(
    service: &Rc<Service>,
    caller: &Caller,
    mut channel: Channel,
    mut call: AnyCall,
) -> io::Result<()> {
    if let Err(decision) = methods::known(service, caller) {
        return channel.send(&Fault::from(decision)).await;
    }
    let more = call.more();
    let wanted = match parameters::<MonitorCall>(&mut call) {
        Ok(wanted) => wanted,
        Err(fault) => return channel.send(&fault).await,
    };
    if !more {
        return channel.send(&varlink_service::Error::ExpectedMore).await;
    }
    let account = service.users.account(caller.subject.user);
    let Some(_monitor) = service.users.monitor(account) else {
        let message = "too many connections of this user receive events; close one of them".to_owned();
        return channel.send(&Fault::Failed { message }).await;
    };
    let mut events = service.events();
    let millis = wanted.interval_ms.unwrap_or(INTERVAL).clamp(100, 3_600_000);
    let mut ticks = interval(Duration::from_millis(millis));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch { whose: methods::visible(service, caller), seen: HashMap::new() };
    watch.look(service, caller);
    // An empty reply at once confirms the subscription.
    let mut pending = Some(Vec::new());
    loop {
        if let Some(mut rest) = pending.take() {
            loop {
                let later = rest.split_off(rest.len().min(PAGE));
                channel.send(&Reply::new(Some(Events { events: rest })).set_continues(Some(true))).await?;
                if later.is_empty() {
                    break;
                }
                rest = later;
                service.turns.begin(account).await;
            }
        }
        tokio::select! {
            // The client only closes the connection.
            () = channel.readable() => return Ok(()),
            event = events.recv() => match event {
                Ok(event) => pending = watch.sees(service, caller, &event).then(|| vec![event]),
                Err(RecvError::Lagged(count)) => {
                    let message = Some(format!("{count} events were lost because the client read too slowly"));
                    pending = Some(vec![Event { event: "lost".to_owned(), count: Some(count), message, ..event_now() }]);
                }
                Err(RecvError::Closed) => return Ok(()),
            },
            _ = ticks.tick() => {
                service.turns.begin(account).await;
                pending = Some(watch.look(service, caller)).filter(|events| !events.is_empty());
            }
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
        for lease in service.leases_of(self.whose) {
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
