//! The orders that xtask writes into the initial file system.

use std::{fs, time::Duration};

use anyhow::Context as _;
use serde_json::Value;

/// All orders.
pub struct Orders {
    /// Only report that the kernel has booted.
    pub trial: bool,
    /// Path of the program crafter.
    pub crafter: String,
    /// Kernel modules to load first.
    pub modules: Vec<String>,
    /// Test programs, in order of execution.
    pub programs: Vec<Program>,
}

/// A program to run.
pub struct Program {
    /// Its path and arguments.
    pub command: Vec<String>,
    /// Working directory.
    pub directory: String,
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// Time after which it is killed.
    pub limit: Duration,
}

impl Orders {
    /// Reads the orders from a JSON file.
    pub fn read(path: &str) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let orders: Value = serde_json::from_str(&text).with_context(|| format!("read {path}"))?;
        let programs = orders["programs"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(Self {
            trial: orders["trial"] == true,
            crafter: orders["crafter"].as_str().unwrap_or_default().to_owned(),
            modules: strings(&orders["modules"]),
            programs: programs.iter().map(program).collect::<anyhow::Result<_>>()?,
        })
    }
}

fn program(value: &Value) -> anyhow::Result<Program> {
    let command = strings(&value["command"]);
    anyhow::ensure!(!command.is_empty(), "a program without a path");
    let variables = value["variables"].as_object().into_iter().flatten();
    Ok(Program {
        command,
        directory: value["directory"].as_str().unwrap_or("/").to_owned(),
        variables: variables
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect(),
        limit: Duration::from_secs(value["seconds"].as_u64().unwrap_or(60)),
    })
}

fn strings(value: &Value) -> Vec<String> {
    let values = value.as_array().map(Vec::as_slice).unwrap_or_default();
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
