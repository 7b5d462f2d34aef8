//! Rows of results, and the table that they are printed in.

/// Target of a value.
pub enum Target {
    /// At most this value.
    AtMost(f64),
    /// At least this value.
    AtLeast(f64),
    /// No target, for information.
    None,
}

/// One measurement.
pub struct Row {
    /// What was measured.
    pub what: String,
    /// crafter's figure with its unit.
    pub crafter: String,
    /// The figure it is compared with: whose, with its unit; `-` if there is none.
    pub peer: String,
    /// The value to compare with the target, in most rows crafter's figure divided by the peer's.
    pub value: f64,
    /// Unit of the value; `x` for a ratio.
    pub unit: &'static str,
    /// The target.
    pub target: Target,
}

impl Row {
    fn target(&self) -> (String, &'static str) {
        let unit = self.unit;
        match self.target {
            Target::AtMost(limit) => (format!("<= {limit}{unit}"), met(self.value <= limit)),
            Target::AtLeast(limit) => (format!(">= {limit}{unit}"), met(self.value >= limit)),
            Target::None => (String::new(), ""),
        }
    }
}

fn met(yes: bool) -> &'static str {
    if yes { "met" } else { "MISSED" }
}

/// Prints `rows` as a Markdown table.
pub fn print(rows: &[Row]) {
    println!("| what | crafter | peer | ratio or value | target | |");
    println!("|---|---|---|---|---|---|");
    for row in rows {
        let (target, met) = row.target();
        let value = format!("{:.2}{}", row.value, row.unit);
        println!("| {} | {} | {} | {value} | {target} | {met} |", row.what, row.crafter, row.peer);
    }
}

/// The median of `values`; the upper one if their number is even.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
