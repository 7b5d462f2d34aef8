//! `ls()`: lists layers, and the fields of a layer.

use crate::layer::{AnyLayer, Kind, Layer as _};

/// All layers, one per line.
pub(super) fn layers() -> String {
    let rows: Vec<[String; 3]> = Kind::ALL
        .iter()
        .map(|kind| {
            let layer = kind.layer();
            let info = layer.info();
            [info.name, info.source, info.doc.trim()].map(str::to_owned)
        })
        .collect();
    table(&rows)
}

/// Fields of a layer: type, bits and default, or with `values` their values.
pub(super) fn fields(layer: &AnyLayer, values: bool) -> String {
    let info = layer.info();
    let row = |(index, field): (usize, &crate::layer::FieldInfo)| {
        let bits = if field.bits == 0 { String::new() } else { field.bits.to_string() };
        let default = || field.default.map_or_else(|| "computed".to_owned(), |default| default().to_string());
        let value = match layer.value(index).filter(|_| values) {
            Some(value) => value.to_string(),
            None => format!("({})", default()),
        };
        [field.name.to_owned(), format!("{} {bits}", field.kind.name()), value, field.doc.trim().to_owned()]
    };
    let rows: Vec<_> = info.fields.iter().enumerate().map(row).collect();
    format!("{}: {} ({})\n{}", info.name, info.doc.trim(), info.source, table(&rows))
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
