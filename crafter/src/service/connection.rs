//! A control connection: reads calls and sends replies.

use std::{io, os::fd::OwnedFd, rc::Rc, time::Duration};

use serde::Serialize;
use zlink::{Reply, varlink_service};

use super::{
    admission::Activity,
    call::{AnyCall, Channel, Received, parameters},
    caller::Caller,
    leasing, methods, monitor,
    state::Service,
};
use crate::protocol::wire::{self, *};

/// How long a user without a rule may stay connected without a call: such a user can only ask for the version and the
/// policy's answer.
const UNNAMED_TIMEOUT: Duration = Duration::from_secs(10);

/// An error of this interface, or of `org.varlink.service`.
enum Answer {
    Fault(Fault),
    Varlink(varlink_service::Error<'static>),
}

impl<E: Into<Fault>> From<E> for Answer {
    fn from(error: E) -> Self {
        Self::Fault(error.into())
    }
}

/// The result of a call: the reply in JSON, and descriptors.
type Replied = Result<(Vec<u8>, Vec<OwnedFd>), Answer>;

/// Serves a connection until the client closes it, sends an invalid call, or the connection has to make room for
/// another one. `is_named`: whether a rule names the caller.
pub(super) async fn run(
    service: &Rc<Service>,
    caller: Caller,
    channel: Channel,
    activity: &Activity,
    is_named: bool,
) -> io::Result<()> {
    let account = service.users.account(caller.subject.user);
    let serve = service.turns.charged(account, serve(service, account, &caller, channel, activity, is_named));
    tokio::select! {
        biased;
        () = activity.closed() => Err(io::Error::other("its place was needed for another user's connection")),
        ended = serve => ended,
    }
}

async fn serve(
    service: &Rc<Service>,
    account: u32,
    caller: &Caller,
    mut channel: Channel,
    activity: &Activity,
    is_named: bool,
) -> io::Result<()> {
    loop {
        let timeout = if is_named { Duration::MAX } else { UNNAMED_TIMEOUT };
        let received = tokio::time::timeout(timeout, channel.receive()).await;
        let received = received.map_err(|_| io::ErrorKind::TimedOut)??;
        service.turns.begin(account).await;
        let mut call = match received {
            Received::Call(call) => call,
            Received::Piece => continue,
            Received::End => return Ok(()),
        };
        activity.note_call();
        if call.method == MonitorCall::NAME {
            return monitor::run(service, caller, channel, call).await;
        }
        let replied = answer(service, caller, &mut call, &mut channel).await?;
        service.note_activity();
        if call.oneway() {
            continue;
        }
        match replied {
            Ok((reply, descriptors)) => channel.send_bytes(&reply, descriptors).await?,
            Err(Answer::Fault(fault)) => channel.send(&fault).await?,
            Err(Answer::Varlink(error)) => channel.send(&error).await?,
        }
    }
}

async fn answer(
    service: &Rc<Service>,
    caller: &Caller,
    any: &mut AnyCall,
    channel: &mut Channel,
) -> io::Result<Replied> {
    Ok(match any.method.as_str() {
        "org.varlink.service.GetInfo" => plain(&serde_json::json!({
            "vendor": "crafter",
            "product": "crafter",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "https://varlink.org/",
            "interfaces": ["org.varlink.service", INTERFACE],
        })),
        "org.varlink.service.GetInterfaceDescription" => description(any),
        InfoCall::NAME => with::<InfoCall, _>(any, async |_| Ok::<_, Fault>(methods::info(service))).await,
        InterfacesCall::NAME => with(any, async |call| methods::list_interfaces(service, caller, &call).await).await,
        PolicyCall::NAME => {
            with::<PolicyCall, _>(any, async |_| Ok::<_, Fault>(methods::allowance(service, caller))).await
        }
        ReloadCall::NAME => with::<ReloadCall, _>(any, async |_| methods::reload(service, caller).await).await,
        RouteCall::NAME => with(any, async |call| methods::route(service, caller, &call).await).await,
        LeaseCall::NAME => with_socket(any, async |call| leasing::lease(service, caller, &call).await).await,
        ObserveCall::NAME => with_socket(any, async |call| leasing::observe(service, caller, &call).await).await,
        ReleaseCall::NAME => with(any, async |call| methods::release(service, caller, &call).await).await,
        AccountCall::NAME => {
            with::<AccountCall, _>(any, async |_| Ok::<_, Fault>(methods::account(service, caller))).await
        }
        ListLeasesCall::NAME => with(any, async |call| methods::list_leases(service, caller, &call).await).await,
        ListFlowsCall::NAME if any.more() => return pages(service, caller, any, channel).await,
        ListFlowsCall::NAME => with(any, async |call| methods::list_flows(service, caller, &call).await).await,
        CountersCall::NAME => with(any, async |call| methods::counters(service, caller, &call).await).await,
        other => Err(Answer::Varlink(match other.rsplit_once('.') {
            Some((INTERFACE | "org.varlink.service", _)) => {
                varlink_service::Error::MethodNotFound { method: other.to_owned().into() }
            }
            interface => varlink_service::Error::InterfaceNotFound {
                interface: interface.map_or(other, |(interface, _)| interface).to_owned().into(),
            },
        })),
    })
}

fn plain(reply: &impl Serialize) -> Replied {
    let mut bytes =
        serde_json::to_vec(&Reply::new(Some(reply))).map_err(|error| Fault::Failed { message: error.to_string() })?;
    bytes.push(0);
    Ok((bytes, Vec::new()))
}

async fn with<M: Method, E: Into<Fault>>(
    call: &mut AnyCall,
    act: impl AsyncFnOnce(M) -> Result<M::Reply, E>,
) -> Replied {
    plain(&act(parameters::<M>(call)?).await?)
}

async fn with_socket<M: Method>(
    call: &mut AnyCall,
    act: impl AsyncFnOnce(M) -> Result<(M::Reply, OwnedFd), Fault>,
) -> Replied {
    let (reply, socket) = act(parameters::<M>(call)?).await?;
    Ok((plain(&reply)?.0, vec![socket]))
}

fn description(call: &AnyCall) -> Replied {
    let wanted = call.parameters.as_ref().and_then(|parameters| parameters.get("interface")?.as_str());
    match wanted {
        Some(INTERFACE) => plain(&serde_json::json!({ "description": wire::DESCRIPTION })),
        Some("org.varlink.service") => plain(&serde_json::json!({ "description": SERVICE })),
        Some(other) => {
            Err(Answer::Varlink(varlink_service::Error::InterfaceNotFound { interface: other.to_owned().into() }))
        }
        None => {
            Err(Answer::Varlink(varlink_service::Error::InvalidParameter { parameter: "interface".to_owned().into() }))
        }
    }
}

/// The interface that every varlink service has (varlink.org, "Service Interface").
const SERVICE: &str = "\
# What the service is, and what it offers.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)

method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)

error MethodNotFound (method: string)

error MethodNotImplemented (method: string)

error InvalidParameter (parameter: string)

error PermissionDenied ()

error ExpectedMore ()
";

/// Sends all pages of flows but the last one, which is returned.
async fn pages(
    service: &Rc<Service>,
    caller: &Caller,
    call: &mut AnyCall,
    channel: &mut Channel,
) -> io::Result<Replied> {
    let mut wanted = match parameters::<ListFlowsCall>(call) {
        Ok(wanted) => wanted,
        Err(fault) => return Ok(Err(fault.into())),
    };
    loop {
        match methods::list_flows(service, caller, &wanted).await {
            Ok(page) if page.next.is_some() => {
                wanted.after = page.next;
                channel.send(&Reply::new(Some(page)).set_continues(Some(true))).await?;
                // A page counts as a call.
                service.turns.begin(service.users.account(caller.subject.user)).await;
            }
            Ok(page) => return Ok(plain(&page)),
            Err(error) => return Ok(Err(error.into())),
        }
    }
}
