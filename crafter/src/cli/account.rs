//! Users and groups that options name.

use crafter::{Error, service::names};

/// Names the option in an error about its value: `--user` for a user, `--group` for a group.
pub fn option_error(error: Error) -> Error {
    match error {
        Error::Invalid { what, reason } if what == names::USER => Error::invalid("--user", reason),
        Error::Invalid { what, reason } if what == names::GROUP => Error::invalid("--group", reason),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_accounts_name_the_option() {
        for (group, option) in
            [(None, "--user: there is no user "), (Some("nobody-of-it"), "--group: there is no group ")]
        {
            let user = if group.is_some() { "0" } else { "nobody-of-it" };
            let groups: Vec<String> = group.into_iter().map(str::to_owned).collect();
            let error = names::subject(user, &groups).map_err(option_error).unwrap_err();
            assert!(error.to_string().starts_with(option), "{error}");
        }
        let other = Error::invalid("port", "is 0");
        assert_eq!(option_error(other).to_string(), "port: is 0");
    }
}
