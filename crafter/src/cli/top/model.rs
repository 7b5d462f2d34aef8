//! State of the display of `crafter top`, without IO: takes snapshots of the service with their times, and keys.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use crafter::protocol::wire::{Flow, Info, InterfaceCounters, Lease};

use super::table::{Cell, Column, Table, numbers, scaled, words};
use crate::cli::{
    counters::{hooks, reasons, verdict},
    flows,
    leases::{self, NamedLease},
    who,
};

/// A view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tab {
    /// Leases, with their rates.
    #[default]
    Leases,
    /// Flows that the kernel half saw.
    Flows,
    /// Counters of the hooks for each interface.
    Interfaces,
}

impl Tab {
    /// All views, in order.
    pub const ALL: [Self; 3] = [Self::Leases, Self::Flows, Self::Interfaces];

    /// The name in the tab bar.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leases => "leases",
            Self::Flows => "flows",
            Self::Interfaces => "interfaces",
        }
    }

    const fn columns(self) -> &'static [Column] {
        match self {
            Self::Leases => LEASES,
            Self::Flows => FLOWS,
            Self::Interfaces => COUNTERS,
        }
    }

    /// The initial sort column: the rate of received packets; counters stay unsorted.
    const fn sorted_by(self) -> Option<usize> {
        match self {
            Self::Leases => Some(6),
            Self::Flows => Some(4),
            Self::Interfaces => None,
        }
    }
}

const LEASES: &[Column] = &[
    numbers("LEASE"),
    words("USER"),
    words("PROCESS"),
    words("INTERFACE"),
    words("PROTO"),
    words("PORTS"),
    numbers("IN/s"),
    numbers("IN-BYTES/s"),
    numbers("OUT/s"),
    numbers("OUT-BYTES/s"),
    numbers("RSTS"),
    numbers("LOST"),
    numbers("REFUSED"),
    numbers("AGE"),
];

const FLOWS: &[Column] = &[
    words("INTERFACE"),
    words("PROTO"),
    words("LOCAL"),
    words("REMOTE"),
    numbers("IN/s"),
    numbers("IN-BYTES/s"),
    numbers("OUT/s"),
    numbers("OUT-BYTES/s"),
    words("FLAGS"),
    numbers("RSTS"),
];

const COUNTERS: &[Column] =
    &[words("INTERFACE"), words("HOOK"), words("REASON"), words("VERDICT"), numbers("PACKETS"), numbers("PACKETS/s")];

/// State of the service at one time.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The service itself.
    pub info: Info,
    /// All leases that this user may see.
    pub leases: Vec<NamedLease>,
    /// Flows, and whether there are more; `None` unless their view is shown.
    pub flows: Option<(Vec<Flow>, bool)>,
    /// Counters; `None` unless their view is shown.
    pub counters: Option<Vec<InterfaceCounters>>,
}

/// The action of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Show the next view.
    NextTab,
    /// Show the previous view.
    PreviousTab,
    /// Sort by the next column.
    Sort,
    /// Reverse the order.
    Reverse,
    /// Move down by this many rows, or up if negative.
    Move(isize),
    /// Move down by this many screens, or up if negative.
    Page(isize),
    /// Move to the first row.
    Home,
    /// Move to the last row.
    End,
}

/// The previous values of monotonic counters, by key.
#[derive(Debug)]
struct Previous<K, const N: usize> {
    at: Option<Instant>,
    numbers: HashMap<K, [u64; N]>,
}

impl<K, const N: usize> Default for Previous<K, N> {
    fn default() -> Self {
        Self { at: None, numbers: HashMap::new() }
    }
}

impl<K: Hash + Eq, const N: usize> Previous<K, N> {
    /// Rates per second since the previous call; `None` on the first call. A new key counts from 0.
    fn rates(&mut self, now: Instant, numbers: Vec<(K, [u64; N])>) -> Vec<Option<[f64; N]>> {
        let seconds = self.at.map(|at| now.saturating_duration_since(at)).filter(|time| *time > Duration::ZERO);
        let rates = numbers.iter().map(|(key, numbers)| {
            let before = self.numbers.get(key).copied().unwrap_or([0; N]);
            let seconds = seconds?.as_secs_f64();
            // A smaller value: the counter has started again from 0.
            let more = |at: usize| numbers[at].checked_sub(before[at]).unwrap_or(numbers[at]);
            Some(std::array::from_fn(|at| more(at) as f64 / seconds))
        });
        let rates = rates.collect();
        self.at = Some(now);
        self.numbers = numbers.into_iter().collect();
        rates
    }
}

/// State of the display.
#[derive(Debug, Default)]
pub struct Model {
    tab: Tab,
    /// For each tab: the sort column, and whether the order is reversed.
    order: [(Option<usize>, bool); 3],
    tables: [Table; 3],
    /// The selected row, and the first visible row.
    selected: usize,
    first: usize,
    /// Visible rows at the last draw.
    height: usize,
    head: [String; 2],
    fault: Option<String>,
    leases: Previous<u64, 4>,
    flows: Previous<(String, String, String, String), 4>,
    counters: Previous<(String, String), 1>,
}

impl Model {
    /// A model before the first snapshot.
    pub fn new() -> Self {
        let order = Tab::ALL.map(|tab| (tab.sorted_by(), false));
        let tables = Tab::ALL.map(|tab| Table { columns: tab.columns(), rows: Vec::new() });
        Self { order, tables, ..Self::default() }
    }

    /// The current view.
    pub fn tab(&self) -> Tab {
        self.tab
    }

    /// The lines above the table.
    pub fn head(&self) -> &[String; 2] {
        &self.head
    }

    /// The table of the current view.
    pub fn table(&self) -> &Table {
        &self.tables[self.tab as usize]
    }

    /// The sort column of the current view, and whether the order is reversed.
    pub fn order(&self) -> (Option<usize>, bool) {
        self.order[self.tab as usize]
    }

    /// Why the display is not up to date.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// The first visible row and the selected row on a screen of `height` rows.
    pub fn window(&mut self, height: usize) -> (usize, usize) {
        self.height = height;
        let last = self.table().rows.len().saturating_sub(1);
        self.selected = self.selected.min(last);
        // No empty rows below the last row while rows above are hidden.
        self.first = self.first.min((last + 1).saturating_sub(height)).min(self.selected);
        if height > 0 && self.selected >= self.first + height {
            self.first = self.selected + 1 - height;
        }
        (self.first, self.selected)
    }

    /// Handles a key.
    pub fn press(&mut self, key: Key) {
        let step = |by: isize, from: usize| from.saturating_add_signed(by);
        match key {
            Key::NextTab | Key::PreviousTab => {
                let by = if key == Key::NextTab { 1 } else { Tab::ALL.len() - 1 };
                self.tab = Tab::ALL[(self.tab as usize + by) % Tab::ALL.len()];
                (self.selected, self.first) = (0, 0);
            }
            Key::Sort => {
                let (column, is_reversed) = &mut self.order[self.tab as usize];
                let next = column.map_or(0, |column| column + 1);
                (*column, *is_reversed) = (Some(next % self.tab.columns().len()), false);
                self.sort();
            }
            Key::Reverse => {
                let (_, is_reversed) = &mut self.order[self.tab as usize];
                *is_reversed = !*is_reversed;
                self.sort();
            }
            Key::Move(by) => self.selected = step(by, self.selected),
            Key::Page(by) => self.selected = step(by.saturating_mul(self.height.max(1) as isize), self.selected),
            Key::Home => self.selected = 0,
            Key::End => self.selected = usize::MAX,
        }
    }

    fn sort(&mut self) {
        let at = self.tab as usize;
        if let (Some(column), is_reversed) = self.order[at] {
            self.tables[at].sort(column, is_reversed);
        }
    }

    /// Shows an error; the last snapshot stays visible.
    pub fn fail(&mut self, sentence: String) {
        self.fault = Some(sentence);
    }

    /// Shows a snapshot taken at `now`. `age` returns the time since a time in microseconds since 1970.
    pub fn take(&mut self, snapshot: Snapshot, now: Instant, age: impl Fn(u64) -> Duration) {
        self.fault = None;
        self.take_leases(&snapshot, now, &age);
        if let Some((flows, is_cut)) = snapshot.flows {
            self.take_flows(flows, now);
            if is_cut {
                self.fault = Some(format!("only {} flows are shown", self.tables[Tab::Flows as usize].rows.len()));
            }
        }
        if let Some(counters) = snapshot.counters {
            self.take_counters(&counters, now);
        }
        self.sort();
    }

    fn take_leases(&mut self, snapshot: &Snapshot, now: Instant, age: &impl Fn(u64) -> Duration) {
        let numbers = snapshot.leases.iter().map(|NamedLease { lease, .. }| {
            (lease.lease, [lease.delivered, lease.delivered_bytes, lease.sent, lease.sent_bytes])
        });
        let rates = self.leases.rates(now, numbers.collect());
        let sum = |number: fn(&Lease) -> u64| snapshot.leases.iter().map(|named| number(&named.lease)).sum::<u64>();
        let mut total = [0.0; 4];
        for rates in rates.iter().flatten() {
            total.iter_mut().zip(rates).for_each(|(total, rate)| *total += rate);
        }
        let Info { version, pid, policy, started, leases, .. } = &snapshot.info;
        self.head = [
            format!(
                "crafter {version}, process {pid}, up {}, leases {leases}, policy {}",
                who::age(age(*started)),
                who::printable(policy)
            ),
            format!(
                "in {} packets/s {} bytes/s, out {} packets/s {} bytes/s, RSTs suppressed {}, lost {}, refused {}",
                scaled(total[0]),
                scaled(total[1]),
                scaled(total[2]),
                scaled(total[3]),
                sum(|lease| lease.suppressed),
                sum(|lease| lease.lost),
                sum(|lease| lease.refused)
            ),
        ];
        let rows = snapshot.leases.iter().zip(rates).map(|(named, rates)| {
            let NamedLease { lease, process, .. } = named;
            let rate = |at: usize| Cell::rate(rates.map(|rates| rates[at]));
            let age = age(lease.began);
            vec![
                Cell::count(lease.lease),
                Cell::text(named.user()),
                Cell::text(process.as_deref().unwrap_or("-")),
                Cell::text(&lease.interface),
                Cell::text(&lease.protocol),
                Cell::text(leases::ports(lease.first_port, lease.last_port)),
                rate(0),
                rate(1),
                rate(2),
                rate(3),
                Cell::count(lease.suppressed),
                Cell::count(lease.lost),
                Cell::count(lease.refused),
                Cell::number(age.as_secs_f64(), who::age(age)),
            ]
        });
        self.tables[Tab::Leases as usize].rows = rows.collect();
    }

    fn take_flows(&mut self, flows: Vec<Flow>, now: Instant) {
        let key =
            |flow: &Flow| (flow.interface.clone(), flow.protocol.clone(), flow.local.clone(), flow.remote.clone());
        let numbers = |flow: &Flow| [flow.rx_packets, flow.rx_bytes, flow.tx_packets, flow.tx_bytes];
        let rates = self.flows.rates(now, flows.iter().map(|flow| (key(flow), numbers(flow))).collect());
        let rows = flows.into_iter().zip(rates).map(|(flow, rates)| {
            let rate = |at: usize| Cell::rate(rates.map(|rates| rates[at]));
            let flags = flows::flags(&flow);
            let Flow { interface, protocol, local, remote, suppressed, .. } = flow;
            let mut cells: Vec<Cell> = [interface, protocol, local, remote].map(Cell::text).into();
            cells.extend([rate(0), rate(1), rate(2), rate(3), Cell::text(flags), Cell::count(suppressed)]);
            cells
        });
        self.tables[Tab::Flows as usize].rows = rows.collect();
    }

    fn take_counters(&mut self, interfaces: &[InterfaceCounters], now: Instant) {
        let mut rows: Vec<([&str; 4], u64)> = Vec::new();
        for counters in interfaces {
            for (hook, is_ingress, total) in hooks(counters.ingress, counters.egress) {
                rows.push(([&counters.interface, hook, "total", ""], total));
                for reason in reasons(is_ingress) {
                    let count = counters.counters.get(reason.name()).copied().unwrap_or(0);
                    if count > 0 {
                        rows.push(([&counters.interface, hook, reason.name(), verdict(reason)], count));
                    }
                }
            }
        }
        let key = |[interface, hook, reason, _]: &[&str; 4]| ((*interface).to_owned(), format!("{hook} {reason}"));
        let rates = self.counters.rates(now, rows.iter().map(|(words, count)| (key(words), [*count])).collect());
        let rows = rows.into_iter().zip(rates).map(|((words, count), rates)| {
            let mut cells: Vec<Cell> = words.map(Cell::text).into();
            cells.extend([Cell::count(count), Cell::rate(rates.map(|[rate]| rate))]);
            cells
        });
        self.tables[Tab::Interfaces as usize].rows = rows.collect();
    }
}
