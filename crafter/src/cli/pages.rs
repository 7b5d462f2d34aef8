//! Complete lists from the pages that the service returns.

use crafter::{
    Result,
    protocol::{
        control::Control,
        wire::{Flow, Lease, ListFlowsCall, ListLeasesCall},
    },
};

/// Whether to request one more page. `next` must be larger than `after`, so that a service whose pages repeat cannot cause
/// an endless loop.
fn follows(after: Option<u64>, next: Option<u64>) -> bool {
    next.is_some() && next > after
}

/// All leases that `call` selects.
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

/// At most `most` flows that `call` selects, and whether there are more.
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
    fn repeated_page_ends_the_list() {
        assert!(follows(None, Some(0)) && follows(Some(3), Some(4)));
        assert!(
            !follows(None, None) && !follows(Some(3), None) && !follows(Some(3), Some(3)) && !follows(Some(3), Some(1))
        );
    }
}
