//! `crafter ls`: the layers, and the fields of one.

use crate::cli::exit;
use crafter::{
    Error,
    layer::{FieldInfo, Kind, Layer as _, LayerInfo},
};
use serde_json::{Value, json};

use super::{Globals, print};

/// `crafter ls`
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// The layer whose fields to list, e.g. TCP
    layer: Option<String>,
}

const HELP: &str = "\
Names are those of the text form, which `crafter build`, `send`, `sr` and `shell` read.
--json: an array with layer, source (the standard) and description of each; of one layer an
object with these and fields (name, type, bits, default, computed, description, names).
Exit code 0; 2: there is no such layer.

Examples:
  crafter ls
  crafter ls --json TCP";

/// Prints the list.
///
/// # Errors
/// [`Error::Invalid`] for a layer that there is not.
pub async fn run(args: Args, globals: &Globals) -> anyhow::Result<u8> {
    let Some(name) = args.layer else {
        let all: Vec<&LayerInfo> = Kind::ALL.iter().map(|kind| kind.layer().info()).collect();
        if globals.json {
            print::json(&all.iter().map(|info| head(info)).collect::<Vec<_>>())?;
        } else {
            let mut rows = vec![["LAYER", "SOURCE", "WHAT"].map(str::to_owned)];
            rows.extend(all.iter().map(|info| [info.name, info.source, info.doc.trim()].map(str::to_owned)));
            print_table(&rows, &["LAYER", "SOURCE", "WHAT"])?;
        }
        return Ok(exit::SUCCESS);
    };
    let info = Kind::named(&name).map_err(|reason| Error::invalid("LAYER", reason))?.layer().info();
    if globals.json {
        let mut object = head(info);
        object["fields"] = info.fields.iter().map(field).collect();
        print::json(&object)?;
    } else {
        print::out(format!("{}: {} ({})\n", info.name, info.doc.trim(), info.source))?;
        let mut rows = vec![["FIELD", "TYPE", "BITS", "DEFAULT", "WHAT"].map(str::to_owned)];
        rows.extend(info.fields.iter().map(|field| {
            let bits = if field.bits == 0 { "-".to_owned() } else { field.bits.to_string() };
            let what = field.doc.trim().to_owned();
            [field.name.to_owned(), field.kind.name().to_owned(), bits, default(field), what]
        }));
        print_table(&rows, &["FIELD", "TYPE", "DEFAULT", "WHAT"])?;
    }
    Ok(exit::SUCCESS)
}

fn default(field: &FieldInfo) -> String {
    field.default.map_or_else(|| "computed".to_owned(), |default| default().to_string())
}

fn print_table<const N: usize>(rows: &[[String; N]], left: &[&str]) -> std::io::Result<()> {
    let mut text = String::new();
    print::columns(&mut text, rows, left);
    print::out(text)
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
