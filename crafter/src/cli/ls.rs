//! `crafter ls`: lists the layers, or the fields of one layer.

use std::io;

use crate::cli::exit;
use crafter::{
    Error,
    layer::{FieldInfo, Kind, Layer as _, LayerInfo},
};
use serde_json::{Value, json};

use super::{
    Globals, complete, paint, print,
    style::{self, Paint},
};

/// `crafter ls`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The layer whose fields to list, e.g. TCP
    #[arg(add = complete::layers())]
    layer: Option<String>,
}

const HELP: &str = "\
The names are those of expressions, which `crafter build`, `send`, `sr` and `shell` read.
--json: an object with layers (layer, source: the standard, description); for one layer an object
with these and fields (name, type, bits, default, computed, description, names).
Exit code 0; 2: no such layer.

Examples:
  crafter ls
  crafter ls --json TCP";

/// Prints the list.
///
/// # Errors
/// [`Error::Invalid`] for an unknown layer.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let Some(name) = args.layer else {
        let all: Vec<&LayerInfo> = Kind::ALL.iter().map(|kind| kind.layer().info()).collect();
        if globals.json {
            let layers: Vec<Value> = all.iter().map(|info| head(info)).collect();
            print::json(&json!({ "layers": layers }))?;
        } else {
            let rows = all.iter().map(|info| [info.name, info.source, info.doc.trim()].map(str::to_owned));
            let table = print::table(["LAYER", "SOURCE", "WHAT"], &["LAYER", "SOURCE", "WHAT"], rows);
            print::out(Paint::stdout().layers(&paint::fill(&table, style::columns(&io::stdout()))))?;
        }
        return Ok(exit::SUCCESS);
    };
    let info = Kind::named(&name).map_err(|reason| Error::invalid("LAYER", reason))?.layer().info();
    if globals.json {
        let mut object = head(info);
        object["fields"] = info.fields.iter().map(field).collect();
        print::json(&object)?;
    } else {
        let paint = Paint::stdout();
        let rows = info.fields.iter().map(|field| {
            let bits = if field.bits == 0 { "-".to_owned() } else { field.bits.to_string() };
            let default = field.default.map_or_else(|| "computed".to_owned(), |default| default().to_string());
            [field.name.to_owned(), field.kind.name().to_owned(), bits, default, field.doc.trim().to_owned()]
        });
        let heading = ["FIELD", "TYPE", "BITS", "DEFAULT", "WHAT"];
        let table = print::table(heading, &["FIELD", "TYPE", "DEFAULT", "WHAT"], rows);
        let head = format!(": {} ({})\n", info.doc.trim(), info.source);
        let text = paint::fill(&format!("{}{head}{table}", info.name), style::columns(&io::stdout()));
        let rest = text.strip_prefix(info.name).unwrap_or(&text);
        print::out(paint.styled(style::LAYER, info.name) + &paint.table(rest))?;
    }
    Ok(exit::SUCCESS)
}

fn head(info: &LayerInfo) -> Value {
    json!({ "layer": info.name, "source": info.source, "description": info.doc.trim() })
}

fn field(field: &FieldInfo) -> Value {
    json!({
        "name": field.name,
        "type": field.kind.name(),
        "bits": (field.bits > 0).then_some(field.bits),
        "default": field.default.map(|default| default().to_json()),
        "computed": field.default.is_none(),
        "description": field.doc.trim(),
        "names": field.names.iter().map(|(number, name)| (number.to_string(), json!(name))).collect::<serde_json::Map<_, _>>(),
    })
}
