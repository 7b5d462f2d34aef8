//! What the service lists page by page, as a whole.

use crafter::{
    Result,
    protocol::{
        control::Control,
        wire::{Flow, Lease, ListFlowsCall, ListLeasesCall},
    },
};

/// Whether to ask for one more page: `next` is behind the page that was asked for, so that a service that goes round in
/// circles ends too.
fn follows(after: Option<u64>, next: Option<u64>) -> bool {
    next.is_some() && next > after
}

/// All leases of `call`, from `after` on.
///
/// # Errors
/// Those of [`Control::call`].
pub async fn leases(control: &Control, mut call: ListLeasesCall) -> Result<Vec<Lease>> {
    let mut leases = Vec::new();
    loop {
        let page = control.call(&call).await?;
        leases.extend(page.leases);
        if !follows(call.after, page.next) {
            return Ok(leases);
        }
        call.after = page.next;
    }
}

/// The flows of `call`, from `after` on, and whether there are more than `most`.
///
/// # Errors
/// Those of [`Control::call`].
pub async fn flows(control: &Control, mut call: ListFlowsCall, most: usize) -> Result<(Vec<Flow>, bool)> {
    let mut flows = Vec::new();
    loop {
        let page = control.call(&call).await?;
        flows.extend(page.flows);
        let more = follows(call.after, page.next);
        if !more || flows.len() >= most {
            let is_cut = more || flows.len() > most;
            flows.truncate(most);
            return Ok((flows, is_cut));
        }
        call.after = page.next;
    }
}

#[cfg(test)]
mod tests {
    use super::follows;

    #[test]
    fn pages_end() {
        assert!(follows(None, Some(0)) && follows(Some(3), Some(4)));
        assert!(
            !follows(None, None) && !follows(Some(3), None) && !follows(Some(3), Some(3)) && !follows(Some(3), Some(1))
        );
    }
}
