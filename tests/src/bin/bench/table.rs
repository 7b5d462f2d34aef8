//! Rows, and how they are printed.

/// What is aimed at.
pub enum Reach {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// For information.
    None,
}

/// One comparison.
pub struct Row {
    /// What was done.
    pub what: String,
    /// crafter's figure, with its unit.
    pub crafter: String,
    /// What it is compared with, and its figure.
    pub beside: String,
    /// The number that counts: mostly crafter's figure divided by the other.
    pub value: f64,
    /// How the value reads.
    pub unit: &'static str,
    /// What it should be.
    pub reach: Reach,
}

impl Row {
    fn reach(&self) -> (String, &'static str) {
        let unit = self.unit;
        match self.reach {
            Reach::AtMost(limit) => (format!("<= {limit}{unit}"), met(self.value <= limit)),
            Reach::AtLeast(limit) => (format!(">= {limit}{unit}"), met(self.value >= limit)),
            Reach::None => (String::new(), ""),
        }
    }
}

fn met(yes: bool) -> &'static str {
    if yes { "met" } else { "SHORT" }
}

/// Prints `rows` as a table that Markdown reads too.
pub fn print(rows: &[Row]) {
    println!("| what | crafter | beside | ratio | reach | |");
    println!("|---|---|---|---|---|---|");
    for row in rows {
        let (reach, met) = row.reach();
        let value = format!("{:.2}{}", row.value, row.unit);
        println!("| {} | {} | {} | {value} | {reach} | {met} |", row.what, row.crafter, row.beside);
    }
}

/// The middle one of `values`.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
