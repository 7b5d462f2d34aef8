//! The output of each command with `--json`, checked against `crafter/docs/schema/v1`.

use std::{collections::HashMap, fs, path::Path, sync::OnceLock};

use serde_json::{Map, Value};

use super::Done;

/// All schemas by the name of their file without `.json`.
fn schemas() -> &'static HashMap<String, Value> {
    static SCHEMAS: OnceLock<HashMap<String, Value>> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema/v1");
        let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let read = |path: std::path::PathBuf| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
        };
        files.map(read).collect()
    })
}

/// Checks a value against a schema. Supports the keywords that the schemas use; panics on others.
fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let schema = schema.as_object().expect("a schema is an object");
    for (keyword, argument) in schema {
        let holds = match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" | "required" | "additionalProperties" => true,
            "$ref" => {
                let name =
                    argument.as_str().and_then(|to| to.strip_prefix("common.json#/$defs/")).expect("a reference");
                check(&schemas()["common"]["$defs"][name], value)?;
                true
            }
            "type" => match argument {
                Value::Array(names) => names.iter().any(|name| is_of(name, value)),
                name => is_of(name, value),
            },
            "enum" => argument.as_array().unwrap().contains(value),
            "const" => argument == value,
            "minimum" => value.is_null() || value.as_f64() >= argument.as_f64(),
            "oneOf" => {
                let found: Vec<_> = argument.as_array().unwrap().iter().map(|each| check(each, value)).collect();
                match found.iter().filter(|found| found.is_ok()).count() {
                    1 => true,
                    count => return Err(format!("{count} of the alternatives hold for {value}: {found:?}")),
                }
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    check(argument, item)?;
                }
                true
            }
            "properties" => {
                if let Some(object) = value.as_object() {
                    check_keys(schema, argument.as_object().unwrap(), object)?;
                }
                true
            }
            other => panic!("the checker does not know the keyword {other}"),
        };
        if !holds {
            return Err(format!("{keyword} {argument} does not hold for {value}"));
        }
    }
    // An object without listed properties is a map.
    if let (None, Some(values @ Value::Object(_)), Some(object)) =
        (schema.get("properties"), schema.get("additionalProperties"), value.as_object())
    {
        object.values().try_for_each(|value| check(values, value))?;
    }
    Ok(())
}

fn check_keys(
    schema: &Map<String, Value>,
    properties: &Map<String, Value>,
    object: &Map<String, Value>,
) -> Result<(), String> {
    for key in schema["required"].as_array().unwrap() {
        if !object.contains_key(key.as_str().unwrap()) {
            return Err(format!("no key {key}"));
        }
    }
    assert_eq!(schema["additionalProperties"], false, "all keys are listed");
    for (key, value) in object {
        let property = properties.get(key).ok_or_else(|| format!("unknown key {key}"))?;
        check(property, value).map_err(|error| format!("{key}: {error}"))?;
    }
    Ok(())
}

fn is_of(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type {other}"),
    }
}

/// Checks a line of a command's output, and returns it.
#[track_caller]
pub fn valid(command: &str, line: &str) -> Value {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let schema = schemas().get(command).unwrap_or_else(|| panic!("no schema of {command}"));
    check(schema, &value).unwrap_or_else(|error| panic!("{command}: {error}\n{line}"));
    value
}

impl Done {
    /// The object that a command printed, checked.
    #[track_caller]
    pub fn object(&self, command: &str) -> Value {
        let lines: Vec<&str> = self.text().lines().collect();
        assert_eq!(lines.len(), 1, "one object: {self:?}");
        valid(command, lines[0])
    }

    /// The records that a command printed before its summary, and the summary, all of them checked.
    #[track_caller]
    pub fn records(&self, command: &str) -> (Vec<Value>, Value) {
        let mut records: Vec<Value> = self.text().lines().map(|line| valid(command, line)).collect();
        let summary = records.pop().unwrap_or_else(|| panic!("no summary: {self:?}"));
        assert_eq!(summary["type"], "summary", "{self:?}");
        assert!(records.iter().all(|record| record["type"] != "summary"), "{self:?}");
        (records, summary)
    }
}

#[test]
fn checker_rejects_what_a_schema_does_not_allow() {
    let sound = r#"{"type":"summary","events":3}"#;
    assert_eq!(valid("monitor", sound)["events"], 3);
    let schema = &schemas()["monitor"];
    for wrong in [
        r#"{"type":"summary"}"#,
        r#"{"type":"summary","events":-1}"#,
        r#"{"type":"summary","events":1.5}"#,
        r#"{"type":"summary","events":"3"}"#,
        r#"{"type":"summary","events":3,"more":null}"#,
        r#"{"type":"event"}"#,
        "[]",
    ] {
        assert!(check(schema, &serde_json::from_str(wrong).unwrap()).is_err(), "{wrong}");
    }
}
