//! The service, and what it allows this user. Every user who may connect can query this.

use std::{os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use crafter::{
    Error, Result,
    protocol::wire::{ABI, Allowance, Info, InfoCall, PolicyCall, Rule},
};
use nix::unistd::{Gid, Group, Uid};
use serde::Serialize;

use super::super::{
    service::Socket,
    who::{Users, printable},
};

/// Time limit for the replies of the service.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Whether this user can work through the service, and the reason.
#[derive(Debug, Serialize)]
pub struct Served {
    pub works: bool,
    pub finding: String,
    socket: String,
    version: Option<String>,
    abi: Option<u32>,
    /// The user id by which the service knows this process.
    user: Option<u32>,
    /// The number of the policy rule that applies.
    rule: Option<u32>,
}

impl Served {
    /// Queries the service.
    pub async fn query(socket: &Socket) -> Self {
        let path = socket.path();
        let reply = tokio::time::timeout(TIMEOUT, request(socket)).await;
        let (works, finding, info, allowance) = match reply {
            Ok(Ok((info, allowance))) => {
                let (works, finding) = judge(&info, &allowance, &path);
                (works, finding, Some(info), Some(allowance))
            }
            Ok(Err(error)) => (false, why_not(&error, &path), None, None),
            Err(_) => {
                let finding = format!(
                    "the service at {} does not answer within {TIMEOUT:?}; see `systemctl status crafter`",
                    path.display()
                );
                (false, finding, None, None)
            }
        };
        Self {
            works,
            finding,
            socket: path.display().to_string(),
            version: info.as_ref().map(|info| printable(&info.version)),
            abi: info.as_ref().map(|info| info.abi),
            user: allowance.as_ref().map(|allowance| allowance.user),
            rule: allowance.and_then(|allowance| allowance.rule).map(|rule| rule.number),
        }
    }
}

async fn request(socket: &Socket) -> Result<(Info, Allowance)> {
    let control = socket.open().await?;
    Ok((control.call(&InfoCall {}).await?, control.call(&PolicyCall {}).await?))
}

/// Whether the policy allows the user anything, and what.
fn judge(info: &Info, allowance: &Allowance, path: &Path) -> (bool, String) {
    let user = Users::default().label(allowance.user);
    let at = format!("crafter {} at {}", printable(&info.version), path.display());
    if info.abi != ABI {
        let finding = format!("{at} has abi {}, this program {ABI}; install the same version of both", info.abi);
        return (false, finding);
    }
    let policy = match info.policy.as_str() {
        "shipped" => "its policy, the shipped one; write another to /etc/crafter/crafter.toml".to_owned(),
        path => format!("its policy; ask the administrator of {} to change it", printable(path)),
    };
    match &allowance.rule {
        None => (false, format!("{at} allows {user} nothing: no rule names this user or its groups in {policy}")),
        Some(rule) if rule.refuse => {
            (false, format!("{at} allows {user} nothing: rule {} refuses everything in {policy}", rule.number))
        }
        Some(rule) => match grants(rule).as_str() {
            "" => (false, format!("{at} allows {user} nothing: rule {} allows no protocol in {policy}", rule.number)),
            grants => (true, format!("{at} allows {user} {grants} (rule {})", rule.number)),
        },
    }
}

fn grants(rule: &Rule) -> String {
    let mut grants = rule.protocols.clone();
    if rule.observe {
        grants.push("observing".to_owned());
    }
    grants.join(", ")
}

/// Why the service does not answer, and what this user can do.
fn why_not(error: &Error, path: &Path) -> String {
    match error {
        Error::NoService { reason, .. } if !path.exists() => {
            format!(
                "no service listens at {} ({reason}); start it with `sudo systemctl enable --now crafter.socket` or \
                 `sudo crafter serve`",
                path.display()
            )
        }
        // The mode and the group of the socket decide who may connect.
        Error::NoService { .. } if !may_connect(path) => {
            let group = std::fs::metadata(path).ok().map(|socket| Gid::from_raw(socket.gid()));
            let group =
                group.and_then(|group| Group::from_gid(group).ok().flatten()).map(|group| printable(&group.name));
            let user = Users::default().label(Uid::effective().as_raw());
            let group = group.unwrap_or_else(|| "crafter".to_owned());
            format!(
                "{user} may not connect to the service at {}; join its group and log in again: \
                 sudo usermod -aG {group} {user}",
                path.display()
            )
        }
        other => other.to_string(),
    }
}

fn may_connect(path: &Path) -> bool {
    nix::unistd::eaccess(path, nix::unistd::AccessFlags::W_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_names_the_rule_and_the_remedy() {
        let info = Info { version: "0.1.0".into(), abi: ABI, policy: "shipped".into(), ..Info::default() };
        let rule = Rule { number: 2, protocols: vec!["tcp".into()], observe: true, ..Rule::default() };
        let decided = |info: &Info, rule: Option<Rule>| {
            judge(info, &Allowance { user: 4_000_000_000, rule, ..Allowance::default() }, Path::new("/run/s"))
        };
        let (works, finding) = decided(&info, Some(rule.clone()));
        assert_eq!(
            (works, finding.as_str()),
            (true, "crafter 0.1.0 at /run/s allows 4000000000 tcp, observing (rule 2)")
        );
        for (rule, why) in [
            (None, "no rule names this user"),
            (Some(Rule { refuse: true, ..rule.clone() }), "rule 2 refuses everything in its policy, the shipped one"),
            (Some(Rule { protocols: vec![], observe: false, ..rule.clone() }), "rule 2 allows no protocol"),
        ] {
            let (works, finding) = decided(&info, rule);
            assert!(!works && finding.contains(why), "{finding}");
        }
        let (works, finding) = decided(&Info { abi: ABI + 1, ..info }, Some(rule));
        assert!(!works && finding.contains("install the same version of both"), "{finding}");
    }
}
