//! Explanations agree with decisions.

use proptest::prelude::*;

use super::*;

fn question(destination: &str, port: Option<u16>) -> Question {
    Question {
        interface: None,
        source: None,
        source_port: None,
        destination: destination.parse().unwrap(),
        port,
        transport: Transport::Tcp,
        addresses: host().addresses,
        broadcasts: host().broadcasts,
    }
}

#[test]
fn explanation_names_rule_line_and_reason() {
    let text = "# mine\n[[rule]]\nuser = 'mallory'\nrefuse = true\n\n# theirs\n[[rule]]\nuser = 'alice'\nallow = ['any']\n\
                deny = [\n  '10.0.0.0/8',\n  { prefix = '10.9.0.0/16', ports = [25, 26] },\n]\n\n# the end\n";
    let policy = load(text);
    let explanation = policy.explain(&alice(), &question("10.9.1.1", Some(25)));
    assert_eq!(
        (explanation.allowed, explanation.verdict, explanation.rule, explanation.line),
        (false, Verdict::Denied, Some(2), Some(7))
    );
    assert_eq!(explanation.destination_line, Some(11));
    assert_eq!(
        explanation.sentence,
        "refused: TCP to 10.9.1.1 port 25: rule 2 (line 7, user alice): it denies the destination \
         (10.0.0.0/8 in line 11)"
    );
    let rule = explanation.text.unwrap();
    assert!(rule.starts_with("[[rule]]\nuser = 'alice'") && rule.ends_with("\n]"), "{rule}");
    let explanation = policy.explain(&alice(), &question("8.8.8.8", Some(53)));
    assert!(
        explanation.allowed && explanation.sentence.ends_with("allows it (0.0.0.0/0 in line 9)"),
        "{explanation:?}"
    );
    assert_eq!(explanation.assumed.len(), 2, "{explanation:?}");
    let mallory = Subject { user: MALLORY, groups: vec![] };
    let explanation = policy.explain(&mallory, &question("8.8.8.8", Some(53)));
    assert_eq!((explanation.verdict, explanation.rule, explanation.line), (Verdict::Refused, Some(1), Some(2)));
    assert_eq!(explanation.text.as_deref(), Some("[[rule]]\nuser = 'mallory'\nrefuse = true"));
    let explanation = policy.explain(&Subject { user: 7, groups: vec![] }, &question("8.8.8.8", None));
    assert_eq!((explanation.verdict, explanation.rule, explanation.text), (Verdict::NoRule, None, None));
    let inline = load("rule = [{ user = 'alice', ports = [80] }, { user = 'mallory' }]");
    assert_eq!(inline.rules()[0].text, "{ user = 'alice', ports = [80] }");
}

proptest! {
    #[test]
    fn explanation_agrees_with_the_decision(
        keys in any::keys(), source in 0usize..4, sport in 49_998u16..50_004, destination in any::destination(),
        port in 23u16..28, interface in 0usize..2,
    ) {
        let policy = rule(&keys);
        let sources: [IpAddr; 4] =
            ["192.0.2.1", "198.51.100.1", "192.0.2.9", "2001:db8::1"].map(|address| address.parse().unwrap());
        let source = sources[source];
        prop_assume!(source.is_ipv4() == destination.is_ipv4());
        let interface = ["eth0", "wlan0"][interface].to_owned();
        let question = Question {
            interface: Some(interface.clone()),
            source: Some(source),
            source_port: Some(sport),
            ..question(&destination.to_string(), Some(port))
        };
        let explanation = policy.explain(&alice(), &question);
        // Like the service: a lease, then a packet.
        let requested = RequestedLease { interface, address: Some(source), ports: sport..=sport, ..requested() };
        let mut usage = Usage::default();
        let allowed = policy.grant(&alice(), &requested, &host(), &usage).is_ok_and(|grant| {
            let packet = tcp(&std::net::SocketAddr::new(source, sport).to_string(),
                &std::net::SocketAddr::new(destination, port).to_string());
            policy.packet(&grant, &packet, &mut usage, Instant::now()).is_allowed()
        });
        prop_assert_eq!(explanation.allowed, allowed, "{} {}", explanation.sentence, keys);
    }
}
