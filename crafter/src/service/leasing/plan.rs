//! Plans a lease by the policy. Pure: opens, attaches and reserves nothing.

use std::{net::IpAddr, ops::RangeInclusive};

use super::{
    lease_error::LeaseError,
    served_request::{Ports, ServedRequest},
};
use crate::{
    Error,
    policy::{Decision, Host, Policy, RequestedLease, Rule, Subject, Verdict},
    protocol::wire::Fault,
};

/// What to acquire for a request.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) interface: String,
    /// The local address; `None`: each of the host's.
    pub(super) address: Option<IpAddr>,
    pub(super) ports: Candidates,
}

/// The ports to try.
#[derive(Debug)]
pub(super) enum Candidates {
    /// No ports.
    None,
    /// All ports of this range.
    These(RangeInclusive<u16>),
    /// `count` consecutive ports of `allowed`, the ports of rule number `rule`.
    Free { rule: usize, allowed: Vec<RangeInclusive<u16>>, count: u16 },
}

/// Decides whether `subject` may lease on `interface`, before the service attaches: a user whom no rule names must
/// learn nothing else about the host.
///
/// # Errors
/// The decision that refuses the lease.
pub(super) fn admit<'p>(
    policy: &'p Policy,
    subject: &Subject,
    request: &ServedRequest,
    interface: &str,
) -> Result<&'p Rule, Decision> {
    let rule = rule_of(policy, subject)?;
    let sample = match &request.ports {
        Ports::These(ports) => ports.clone(),
        _ => {
            let ranges = request.transport.map(|transport| rule.leasable(transport)).unwrap_or_default();
            ranges.first().map_or(0..=0, |range| *range.start()..=*range.start())
        }
    };
    let decision = policy.requested(subject, &request.requested(interface, sample));
    if decision.is_allowed() { Ok(rule) } else { Err(decision) }
}

/// The rule that decides for `subject`.
///
/// # Errors
/// [`Verdict::NoRule`] if there is none.
pub(super) fn rule_of<'p>(policy: &'p Policy, subject: &Subject) -> Result<&'p Rule, Decision> {
    policy.rule_of(subject).ok_or(Decision { rule: None, verdict: Verdict::NoRule })
}

/// Plans an admitted request; `preferred` is the source address of the route to the destination.
///
/// # Errors
/// If the policy allows several of the host's addresses, but not all, and the request names none.
pub(super) fn plan(
    policy: &Policy,
    rule: &Rule,
    subject: &Subject,
    request: &ServedRequest,
    interface: &str,
    host: &Host,
    preferred: Option<IpAddr>,
) -> Result<Plan, LeaseError> {
    let address = local_address(policy, subject, request, interface, host, preferred)?;
    let ports = match (request.transport, &request.ports) {
        (None, _) | (_, Ports::None) => Candidates::None,
        (Some(_), Ports::These(ports)) => Candidates::These(ports.clone()),
        (Some(transport), Ports::Free(count)) => {
            Candidates::Free { rule: rule.number, allowed: rule.leasable(transport), count: *count }
        }
    };
    Ok(Plan { interface: interface.to_owned(), address, ports })
}

/// The address to lease on. If the request names none: all of the host's, if the policy allows them all; otherwise
/// `preferred`, or the only allowed one.
fn local_address(
    policy: &Policy,
    subject: &Subject,
    request: &ServedRequest,
    interface: &str,
    host: &Host,
    preferred: Option<IpAddr>,
) -> Result<Option<IpAddr>, Fault> {
    if request.address.is_some() {
        return Ok(request.address);
    }
    let allows = |address: IpAddr| {
        let requested = RequestedLease { address: Some(address), ..request.requested(interface, 0..=0) };
        policy.requested(subject, &RequestedLease { transport: None, ..requested }).is_allowed()
    };
    let mut allowed = host.addresses.iter().copied().filter(|address| allows(*address));
    if host.addresses.iter().all(|address| allows(*address)) {
        return Ok(None);
    }
    if let Some(preferred) = preferred.filter(|address| allows(*address)) {
        return Ok(Some(preferred));
    }
    match (allowed.next(), allowed.next()) {
        (Some(only), None) => Ok(Some(only)),
        (None, _) => Ok(None),
        (Some(one), Some(other)) => {
            let reason =
                format_args!("the policy allows several of this host's addresses; name one, such as {one} or {other}");
            Err(Error::invalid("address", reason).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{packet::Transport, protocol::wire::LeaseCall};

    const ALICE: u32 = 1000;
    const ADDRESSES: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

    fn host() -> Host {
        Host { addresses: ADDRESSES.map(|text| text.parse().unwrap()).into(), broadcasts: vec![], mtu: 1500 }
    }

    fn subject() -> Subject {
        Subject { user: ALICE, groups: vec![] }
    }

    fn policy(rest: &str) -> Policy {
        Policy::parse(&format!("[[rule]]\nuser = {ALICE}\nallow = [\"any\"]\n{rest}")).unwrap()
    }

    fn request(change: impl FnOnce(&mut LeaseCall)) -> ServedRequest {
        let mut call = LeaseCall { interface: Some("eth0".into()), protocol: "tcp".into(), ..LeaseCall::default() };
        change(&mut call);
        ServedRequest::read(&call).unwrap()
    }

    fn planned(policy: &Policy, request: &ServedRequest, preferred: Option<&str>) -> Result<Plan, LeaseError> {
        let rule = admit(policy, &subject(), request, "eth0")?;
        let preferred = preferred.map(|text| text.parse().unwrap());
        plan(policy, rule, &subject(), request, "eth0", &host(), preferred)
    }

    #[test]
    fn user_without_a_rule_is_refused_before_other_checks() {
        let policy = Policy::parse("[[rule]]\nuser = 1\n").unwrap();
        let refused = admit(&policy, &subject(), &request(|_| {}), "eth0").unwrap_err();
        assert_eq!((refused.rule, refused.verdict), (None, Verdict::NoRule));
    }

    #[test]
    fn an_interface_that_the_rule_does_not_name_is_refused() {
        let policy = policy("interfaces = [\"veth*\"]\n");
        let refused = admit(&policy, &subject(), &request(|_| {}), "eth0").unwrap_err();
        assert_eq!((refused.rule, refused.verdict), (Some(1), Verdict::Interface));
        assert!(admit(&policy, &subject(), &request(|_| {}), "veth1").is_ok());
    }

    #[test]
    fn address_is_the_requested_the_preferred_or_the_only_one() {
        let [v4, v6] = ADDRESSES.map(|text| Some(text.parse::<IpAddr>().unwrap()));
        let any = policy("");
        assert_eq!(planned(&any, &request(|_| {}), None).unwrap().address, None, "each that the policy allows");
        let named = request(|call| call.address = Some(ADDRESSES[1].into()));
        assert_eq!(planned(&any, &named, Some(ADDRESSES[0])).unwrap().address, v6);
        let only = policy("addresses = [\"192.0.2.0/24\"]\n");
        assert_eq!(planned(&only, &request(|_| {}), None).unwrap().address, v4);
        assert_eq!(planned(&only, &request(|_| {}), Some(ADDRESSES[1])).unwrap().address, v4, "not the preferred one");
    }

    #[test]
    fn free_ports_are_those_of_the_rule() {
        let policy = policy("ports = [\"50000-50009\"]\n");
        let plan = planned(&policy, &request(|call| call.count = Some(3)), None).unwrap();
        let Candidates::Free { rule: 1, allowed, count: 3 } = plan.ports else { panic!("{plan:?}") };
        assert_eq!(allowed, [50_000..=50_009]);
        let refused = admit(&policy, &subject(), &request(|call| call.port = Some(80)), "eth0").unwrap_err();
        assert_eq!(refused.verdict, Verdict::Port);
        assert_eq!(policy.rules()[0].leasable(Transport::Icmp), [0..=u16::MAX], "identifiers are free");
    }
}
