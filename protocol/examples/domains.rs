//! Lists the domains of a daemon and prints what happens to them for a while:
//! `cargo run --example domains /run/libvirt/libvirt-sock 10`

use std::time::Duration;

use ferrovirt_protocol::client::Client;
use ferrovirt_protocol::remote::{self, event, procedure};
use tokio::net::UnixStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().unwrap_or("/run/libvirt/libvirt-sock".into());
    let seconds = arguments.next().map_or(Ok(0), |text| text.parse())?;

    let (client, mut events) = Client::unix(UnixStream::connect(socket).await?);
    let client = client.with_timeout(Duration::from_secs(30));
    client.open(Some("qemu:///system"), 0).await?;
    let version = client.call::<procedure::ConnectGetLibVersion>(&()).await?.lib_ver;
    println!("libvirt {}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000);

    let all = remote::ConnectListAllDomainsArgs { need_results: 1, flags: 0 };
    for dom in client.call::<procedure::ConnectListAllDomains>(&all).await?.domains {
        let name = dom.name.clone();
        let info = client.call::<procedure::DomainGetInfo>(&remote::DomainGetInfoArgs { dom }).await?;
        println!("{name}: state {}, {} KiB, {} vcpus", info.state, info.memory, info.nr_virt_cpu);
    }

    let lifecycle = remote::ConnectDomainEventCallbackRegisterAnyArgs { event_id: 0, dom: None };
    client.call::<procedure::ConnectDomainEventCallbackRegisterAny>(&lifecycle).await?;
    let watch = async {
        while let Some(event) = events.next().await {
            if let Some(message) = event.decode::<event::DomainEventCallbackLifecycle>() {
                let message = message?.msg;
                println!("{}: event {}, detail {}", message.dom.name, message.event, message.detail);
            }
        }
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    if let Ok(ended) = tokio::time::timeout(Duration::from_secs(seconds), watch).await {
        ended?;
    }
    client.call::<procedure::ConnectClose>(&()).await?;
    Ok(())
}
