//! A control connection: reads calls and sends replies.

use std::{os::fd::OwnedFd, rc::Rc};

use serde::Serialize;
use zlink::{Call, Connection, Reply, tokio::unix, varlink_service};

use super::{
    call::{AnyCall, Bounded, BoundedConnection, parameters},
    caller::Caller,
    leasing, methods, monitor,
    state::Service,
};
use crate::{
    policy::Subject,
    protocol::wire::{self, *},
};

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

/// The result of a call: the parameters of the reply, and descriptors.
type Replied = Result<(serde_json::Value, Vec<OwnedFd>), Answer>;

/// Serves a connection until the client closes it, or sends an invalid call.
pub(super) async fn run(service: Rc<Service>, stream: tokio::net::UnixStream) {
    if let Err(error) = serve(&service, stream).await {
        log::debug!("a control connection ended: {error}");
    }
}

async fn serve(service: &Rc<Service>, stream: tokio::net::UnixStream) -> zlink::Result<()> {
    let mut connection = Connection::new(Bounded::new(unix::Stream::try_from(stream)?));
    let caller = {
        let credentials = connection.peer_credentials().await?;
        let mut groups = vec![credentials.unix_primary_group_id().as_raw()];
        groups.extend(credentials.unix_supplementary_group_ids().iter().map(|group| group.as_raw()));
        let subject = Subject { user: credentials.unix_user_id().as_raw(), groups };
        let pid = u32::try_from(credentials.process_id().as_raw_pid()).ok();
        Caller { subject, pid, total: Rc::default() }
    };
    loop {
        let (call, _) = connection.receive_call::<AnyCall>().await?;
        if call.method().method == MonitorCall::NAME {
            return monitor::run(service, &caller, connection, &call).await;
        }
        let replied = answer(service, &caller, &call, &mut connection).await?;
        service.note_activity();
        if call.oneway() {
            continue;
        }
        match replied {
            Ok((reply, descriptors)) => {
                connection.send_reply(&Reply::new(Some(reply)), descriptors).await?;
            }
            Err(Answer::Fault(fault)) => connection.send_error(&fault, Vec::new()).await?,
            Err(Answer::Varlink(error)) => connection.send_error(&error, Vec::new()).await?,
        }
    }
}

async fn answer(
    service: &Rc<Service>,
    caller: &Caller,
    call: &Call<AnyCall>,
    connection: &mut BoundedConnection,
) -> zlink::Result<Replied> {
    let any = call.method();
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
        InterfacesCall::NAME => with(any, async |call| methods::list_interfaces(service, &call).await).await,
        PolicyCall::NAME => {
            with::<PolicyCall, _>(any, async |_| Ok::<_, Fault>(methods::allowance(service, caller))).await
        }
        ReloadCall::NAME => with::<ReloadCall, _>(any, async |_| methods::reload(service, caller)).await,
        RouteCall::NAME => with(any, async |call| methods::route(service, caller, &call).await).await,
        LeaseCall::NAME => with_socket(any, async |call| leasing::lease(service, caller, &call).await).await,
        ObserveCall::NAME => with_socket(any, async |call| leasing::observe(service, caller, &call).await).await,
        ReleaseCall::NAME => with(any, async |call| methods::release(service, caller, &call).await).await,
        AccountCall::NAME => {
            with::<AccountCall, _>(any, async |_| Ok::<_, Fault>(methods::account(service, caller))).await
        }
        ListLeasesCall::NAME => {
            with(any, async |call| Ok::<_, Fault>(methods::list_leases(service, caller, &call))).await
        }
        ListFlowsCall::NAME if call.more() => return pages(service, caller, any, connection).await,
        ListFlowsCall::NAME => with(any, async |call| methods::list_flows(service, caller, &call)).await,
        CountersCall::NAME => with(any, async |call| methods::counters(service, caller, &call)).await,
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
    let value = serde_json::to_value(reply).map_err(|error| Fault::Failed { message: error.to_string() })?;
    Ok((value, Vec::new()))
}

async fn with<M: Method, E: Into<Fault>>(call: &AnyCall, act: impl AsyncFnOnce(M) -> Result<M::Reply, E>) -> Replied {
    plain(&act(parameters::<M>(call)?).await?)
}

async fn with_socket<M: Method>(
    call: &AnyCall,
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
    call: &AnyCall,
    connection: &mut BoundedConnection,
) -> zlink::Result<Replied> {
    let mut wanted = match parameters::<ListFlowsCall>(call) {
        Ok(wanted) => wanted,
        Err(fault) => return Ok(Err(fault.into())),
    };
    loop {
        match methods::list_flows(service, caller, &wanted) {
            Ok(page) if page.next.is_some() => {
                wanted.after = page.next;
                connection.send_reply(&Reply::new(Some(page)).set_continues(Some(true)), Vec::new()).await?;
            }
            Ok(page) => return Ok(plain(&page)),
            Err(error) => return Ok(Err(error.into())),
        }
    }
}
