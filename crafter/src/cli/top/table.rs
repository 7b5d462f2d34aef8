//! A table whose rows can be sorted by any column.

use std::cmp::Ordering;

/// A cell: its text and its sort key.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The text.
    pub text: String,
    /// Sort key; `None`: the text.
    number: Option<f64>,
}

impl Cell {
    /// A text, sorted alphabetically.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: None }
    }

    /// A whole number.
    pub fn count(count: u64) -> Self {
        Self { text: count.to_string(), number: Some(count as f64) }
    }

    /// A number that is shown as `text`.
    pub fn number(number: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), number: Some(number) }
    }

    /// A rate per second; `-` if it is unknown.
    pub fn rate(rate: Option<f64>) -> Self {
        match rate {
            Some(rate) => Self::number(rate, scaled(rate)),
            // Sorted below all known rates.
            None => Self::number(-1.0, "-"),
        }
    }
}

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: &'static str,
    /// Whether it holds numbers: aligned to the right, sorted in descending order.
    pub is_number: bool,
}

/// A column of text: aligned to the left, sorted alphabetically.
pub const fn words(name: &'static str) -> Column {
    Column { name, is_number: false }
}

/// A column of numbers: aligned to the right, sorted in descending order.
pub const fn numbers(name: &'static str) -> Column {
    Column { name, is_number: true }
}

/// Rows below headings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// The columns.
    pub columns: &'static [Column],
    /// Each has one cell for each column.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Sorts by a column, in its order or reversed. The sort is stable.
    pub fn sort(&mut self, column: usize, is_reversed: bool) {
        self.rows.sort_by(|a, b| {
            let order = match (a.get(column), b.get(column)) {
                (Some(a), Some(b)) => match (a.number, b.number) {
                    (Some(a), Some(b)) => b.total_cmp(&a),
                    _ => a.text.cmp(&b.text),
                },
                _ => Ordering::Equal,
            };
            if is_reversed { order.reverse() } else { order }
        });
    }

    /// The width of each column, in characters.
    pub fn widths(&self) -> Vec<u16> {
        let width = |(at, column): (usize, &Column)| {
            let cells = self.rows.iter().filter_map(|row| Some(row.get(at)?.text.chars().count()));
            // One more for the marker of the sort column.
            let widest = cells.max().unwrap_or(0).max(column.name.len() + 1);
            u16::try_from(widest).unwrap_or(u16::MAX)
        };
        self.columns.iter().enumerate().map(width).collect()
    }
}

/// A number with a decimal prefix: `0`, `0.5`, `12`, `1234`, `12.3k`, `4.5M`
pub fn scaled(number: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")];
    for (from, unit) in UNITS {
        if number >= from {
            let unit_size = if unit == "k" { 1e3 } else { from };
            return format!("{:.1}{unit}", number / unit_size);
        }
    }
    if number == 0.0 || number >= 10.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_prefixes() {
        for (number, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (12.4, "12"),
            (9999.0, "9999"),
            (12_345.0, "12.3k"),
            (4.5e6, "4.5M"),
            (2e13, "20.0T"),
        ] {
            assert_eq!(scaled(number), text);
        }
    }

    #[test]
    fn sorting_is_stable() {
        const COLUMNS: &[Column] = &[words("NAME"), numbers("RATE")];
        let row = |name: &str, rate| vec![Cell::text(name), Cell::rate(rate)];
        let rows = vec![row("b", Some(2.0)), row("a", None), row("c", Some(10.0)), row("d", Some(2.0))];
        let mut table = Table { columns: COLUMNS, rows };
        let names = |table: &Table| table.rows.iter().map(|row| row[0].text.clone()).collect::<String>();
        table.sort(1, false);
        assert_eq!(names(&table), "cbda");
        table.sort(1, true);
        assert_eq!(names(&table), "abdc");
        table.sort(0, false);
        assert_eq!(names(&table), "abcd");
        table.sort(7, false);
        assert_eq!((names(&table).as_str(), table.widths()), ("abcd", vec![5, 5]));
    }
}
