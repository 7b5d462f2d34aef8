//! Problems and warnings of texts.

use std::time::Duration;

use super::*;

#[track_caller]
fn problems(text: &str) -> Vec<String> {
    match Policy::parse(text) {
        Err(Rejected { problems, .. }) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}\n{text}"),
    }
}

#[test]
fn problems_have_key_line_and_remedy() {
    for (keys, expected) in [
        ("port = [80]", "line 3, column 1: rule 1, port: rules have no key 'port'; did you mean ports"),
        ("alow = []", "did you mean allow?"),
        ("ports = 80", "rule 1, ports: a list in [ ], not a number"),
        ("ports = [80,\n  70000]", "line 4, column 3: rule 1, ports: a port from 0 to 65535"),
        ("ports = ['90-80']", "did you mean \"80-90\"?"),
        ("ports = ['x']", "not \"x\""),
        ("ports = [-1]", "not -1"),
        ("ports = [1.5]", "not a number with a fraction"),
        ("allow = ['10.0.0.1/8']", "did you mean \"10.0.0.0/8\"?"),
        ("deny = ['example.org']", "a prefix such as \"192.0.2.0/24\""),
        ("deny = ['10.0.0.0/33']", "not \"10.0.0.0/33\""),
        ("deny = ['::ffff:10.0.0.0/104']", "write \"10.0.0.0/8\""),
        ("deny = [{ prefx = '10.0.0.0/8' }]", "did you mean prefix?"),
        ("deny = [{ ports = [80] }]", "prefix is missing"),
        ("addresses = [{ prefix = '10.0.0.0/8', ports = [80] }]", "only allow and deny"),
        ("protocols = ['tpc']", "there is no protocol 'tpc'; did you mean tcp?"),
        ("interfaces = ['eth*0']", "(* at the end only)"),
        ("packets_per_second = 0", "a whole number from 1 to 1000000000 or \"unlimited\", not 0"),
        ("packets_per_second = 'many'", "not \"many\""),
        ("burst = 'unlimited'", "a whole number, not \"unlimited\""),
        ("max_leases = -1", "not -1"),
        ("max_ports = 4294967296", "not 4294967296"),
        ("observe = 'yes'", "true or false, not a text"),
        ("foreign_sources = 1", "true, false or a list of prefixes, not a number"),
        ("everybody = false", "true, or user or group instead"),
        ("group = ''", "is not a valid name"),
        ("group = []", "names nobody"),
        ("group = 4294967295", "from 0 to 4294967294"),
        ("group = '200'", "without quotes: 200"),
        ("ports = [80", "invalid TOML: "),
        ("user = 'bob'", "invalid TOML: duplicate key"),
    ] {
        let found = problems(&format!("[[rule]]\nuser = 'alice'\n{keys}\n"));
        assert!(found.iter().any(|problem| problem.contains(expected)), "{keys}: {found:?}");
    }
    assert!(problems("[[rule]]\nports = [80]")[0].starts_with("line 1, column 1: rule 1: the rule names nobody"));
    assert!(problems("[[rules]]\nuser = 'a'")[0].contains("no key 'rules' here; did you mean rule?"));
    assert!(problems("[rule]\nuser = 'a'")[0].contains("[[rule]]"));
    assert!(problems("rule = [1]")[0].contains("[[rule]]"));
    assert!(problems(&"#".repeat((1 << 20) + 1))[0].contains("at most 1048576"));
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = "# \u{e4}\n[[rule]]\nuser = 'alice'\nports = ['x', 80, 'y']\nobserv = true\n\n[[rule]]\nallow = ['z']\n";
    let found = problems(text);
    assert_eq!(found.len(), 5, "{found:?}");
    let begins: Vec<&str> = found.iter().map(|problem| &problem[..problem.find(": ").unwrap()]).collect();
    assert_eq!(
        begins,
        ["line 4, column 10", "line 4, column 19", "line 5, column 1", "line 8, column 10", "line 7, column 1"]
    );
    let error = Error::from(Policy::parse(text).unwrap_err());
    for problem in found {
        assert!(error.to_string().contains(&problem), "{error}");
    }
}

fn warnings(text: &str) -> Vec<String> {
    load(text).warnings().iter().map(ToString::to_string).collect()
}

#[test]
fn settings_without_effect_are_warned_about() {
    for (keys, expected) in [
        ("allow = ['10.1.0.0/16']\ndeny = ['10.0.0.0/8']", "line 3, column 1: rule 1, allow: 10.1.0.0/16 is denied"),
        ("allow = ['10.0.0.0/8', '10.1.0.0/16']", "10.1.0.0/16 is inside another prefix"),
        ("deny = ['10.0.0.0/8', '10.0.0.0/8']", "10.0.0.0/8 is listed twice"),
        ("allow = ['224.0.0.0/24']", "needs multicast = true"),
        ("allow = []", "an empty list"),
        ("ports = []", "an empty list"),
        ("ports = ['80-90', 85]", "overlap"),
        ("packets_per_second = 'unlimited'\nburst = 5", "burst has no effect"),
        ("refuse = true\nports = [80]", "no effect with refuse = true"),
        ("everybody = true", "everybody includes"),
        ("group = 'nobodys'", "there is no group 'nobodys' on this host"),
    ] {
        let found = warnings(&format!("[[rule]]\nuser = 'alice'\n{keys}\n"));
        assert!(found.len() == 1 && found[0].contains(expected), "{keys}: {found:?}");
    }
    for keys in [
        "deny = []",
        "allow = ['10.0.0.0/8']\ndeny = ['10.1.0.0/16']",
        "allow = ['10.0.0.0/8']\ndeny = [{ prefix = 'any', ports = [25] }]",
        "allow = [{ prefix = 'any', ports = [25] }, '10.0.0.0/8']",
        "allow = ['224.0.0.0/24', 'any']\nmulticast = true\ndeny = ['224.0.0.0/4']",
        "ports = [80, '81-90']",
    ] {
        let found = warnings(&format!("[[rule]]\nuser = 'alice'\n{keys}\n"));
        assert!(found.iter().all(|warning| warning.contains("224.0.0.0/24")), "{keys}: {found:?}");
    }
}

#[test]
fn unreachable_rules_are_warned_about() {
    let found = warnings("[[rule]]\nuser = 'alice'\n[[rule]]\nuser = ['mallory', 1000]\n[[rule]]\nuser = 'alice'\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("line 4, column 20: rule 2, user: never reached: rule 1 decides for user 1000"),
        "{found:?}"
    );
    assert!(found[1].contains("rule 3, user: never reached: rule 1 decides for user alice"), "{found:?}");
    let found = warnings("[[rule]]\neverybody = true\n[[rule]]\ngroup = 'crafter'\n");
    assert!(matches!(&found[..], [one] if one.contains("rule 1 decides for everybody")), "{found:?}");
    // A user, and a group of the same number.
    assert!(warnings("[[rule]]\nuser = 'root'\n[[rule]]\ngroup = 'root'\n").is_empty());
}

#[test]
fn failed_lookup_keeps_the_previous_names() {
    struct Broken;
    impl Names for Broken {
        fn user(&self, _: &str) -> Result<Option<u32>> {
            Err(Error::invalid("user", "the directory does not answer"))
        }
        fn group(&self, _: &str) -> Result<Option<u32>> {
            Ok(None)
        }
    }
    assert!(Policy::load(SHIPPED, &Broken).is_err());
    let mut policy = load(SHIPPED);
    policy.resolve(&Broken).unwrap_err();
    assert!(policy.rule_of(&Subject { user: 0, groups: vec![] }).is_some(), "as before");
    let unresolved = Policy::parse(SHIPPED).unwrap();
    assert!(unresolved.rule_of(&Subject { user: 0, groups: vec![0, CRAFTER] }).is_none());
}

#[test]
fn keep_attached_is_a_number_of_seconds_before_the_rules() {
    let kept = |text: &str| Policy::parse(text).unwrap().keep_attached();
    let rule = "[[rule]]\nuser = 1\n";
    assert_eq!(kept(rule), None);
    for seconds in [0, 30, 86_400] {
        assert_eq!(kept(&format!("keep_attached = {seconds}\n{rule}")), Some(Duration::from_secs(seconds)));
    }
    for value in ["-1", "86401", "'30s'", "'unlimited'", "1.5"] {
        let found = problems(&format!("keep_attached = {value}\n{rule}"));
        assert!(found[0].starts_with("line 1, column 17: keep_attached: a whole number"), "{found:?}");
    }
    assert!(problems(&format!("keep_atached = 1\n{rule}"))[0].contains("did you mean keep_attached"));
    assert!(problems(&format!("{rule}keep_attached = 1\n"))[0].contains("rules have no key 'keep_attached'"));
}
