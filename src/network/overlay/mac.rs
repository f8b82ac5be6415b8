//! Hardware addresses of overlay devices.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

/// A device's hardware address, written as `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// A locally administered unicast address that `device` of the node called `node` has in every life.
    pub(super) fn stable(device: &str, node: &str) -> Self {
        let digest = Sha256::new().chain_update(device).chain_update([0]).chain_update(node).finalize();
        let mut mac: [u8; 6] = std::array::from_fn(|n| digest[n]);
        mac[0] = mac[0] & !0b01 | 0b10;
        Self(mac)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it stands for one device: neither for none, nor for a group.
    pub(super) fn is_unicast(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }
}

impl TryFrom<&[u8]> for Mac {
    type Error = std::array::TryFromSliceError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octet = |text: &str| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
        };
        let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
        let mac = octets.and_then(|octets| Self::try_from(octets.as_slice()).ok());
        mac.filter(|mac| mac.is_unicast()).ok_or_else(|| format!("{text:?} is not the hardware address of one device"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardware_address_belongs_to_its_node_and_device() {
        let mac = Mac::stable("flannel.1", "a");
        assert_eq!(mac, Mac::stable("flannel.1", "a"));
        assert_ne!(mac, Mac::stable("flannel.1", "b"));
        assert_ne!(mac, Mac::stable("flannel-v6.1", "a"));
        assert_eq!(mac.bytes()[0] & 0b11, 0b10);
    }

    #[test]
    fn it_is_written_as_flannel_writes_it() {
        let mac: Mac = "5E:8a:0c:00:ff:01".parse().unwrap();
        assert_eq!(mac.to_string(), "5e:8a:0c:00:ff:01");
        for wrong in [
            "",
            "5e:8a:0c:00:ff",
            "5e:8a:0c:00:ff:01:02",
            "+e:8a:0c:00:ff:01",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
