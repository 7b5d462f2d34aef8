//! The network device that smoltcp sees: one packet in, any number out, no queues.

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use crate::config::StreamConfig;

/// Creates an interface with the local address only.
///
/// - smoltcp: `Interface` copies the MTU of its device when it is created; it cannot be changed.
/// - Required: the segment size follows the path's MTU (RFC 9293, section 3.7.2; RFC 5927, section 7.2).
/// - Otherwise: after a change of the MTU, segments stay too long for the path and are all dropped.
/// - Remove when smoltcp reads the MTU of the device at each poll.
///
/// A new interface can continue an open connection, because smoltcp keeps no state of it in the interface.
pub(crate) fn interface(config: &StreamConfig, mtu: usize) -> Interface {
    let mut smoltcp = Config::new(HardwareAddress::Ip);
    smoltcp.random_seed = config.seed;
    let mut scratch = Vec::new();
    let mut device = OneShot { mtu, incoming: None, scratch: &mut scratch, out: &mut |_| {} };
    let mut interface = Interface::new(smoltcp, &mut device, Instant::ZERO);
    let address = IpAddress::from(config.local.ip());
    let prefix = if config.local.is_ipv4() { 32 } else { 128 };
    interface.update_ip_addrs(|addresses| {
        // An empty list has room for one address.
        let _ = addresses.push(IpCidr::new(address, prefix));
    });
    interface
}

/// Passes one received packet to smoltcp, and each packet from smoltcp to a closure.
pub(crate) struct OneShot<'a> {
    pub mtu: usize,
    /// The received packet, until smoltcp reads it.
    pub incoming: Option<&'a [u8]>,
    /// Buffer for outgoing packets, one at a time; grows to the MTU once.
    pub scratch: &'a mut Vec<u8>,
    pub out: &'a mut dyn FnMut(&[u8]),
}

impl Device for OneShot<'_> {
    type RxToken<'t>
        = Incoming<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing { scratch: self.scratch, out: self.out }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing { scratch: self.scratch, out: self.out })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        // Checksums of received packets are verified earlier, where partial checksums are known.
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = checksum;
        capabilities
    }
}

pub(crate) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

pub(crate) struct Outgoing<'a> {
    scratch: &'a mut Vec<u8>,
    out: &'a mut dyn FnMut(&[u8]),
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        if self.scratch.len() < length {
            self.scratch.resize(length, 0);
        }
        let packet = &mut self.scratch[..length];
        let result = write(packet);
        (self.out)(packet);
        result
    }
}
