//! A certificate signing request (RFC 2986): what a node sends to have its key certified.

use yasna::{Tag, construct_der};

use crate::{error::Error, key::PrivateKey};

impl PrivateKey {
    /// A DER-encoded PKCS #10 request for this key. Its subject is empty, as in k3s: who the certificate names is the signer's to say.
    ///
    /// # Errors
    /// The cryptographic library fails to sign.
    pub fn request(&self) -> Result<Vec<u8>, Error> {
        const ACTION: Error = Error::Crypto("sign a certificate request");
        const V1: u8 = 0;
        let (scheme, algorithm) = self.certificate_scheme().ok_or(ACTION)?;
        let information = construct_der(|writer| {
            writer.write_sequence(|information| {
                information.next().write_u8(V1);
                information.next().write_sequence(|_subject| {});
                information.next().write_der(self.public().spki());
                information.next().write_tagged_implicit(Tag::context(0), |writer| writer.write_set(|_attributes| {}));
            });
        });
        let signature = self.sign(scheme, &information).ok_or(ACTION)?;
        Ok(construct_der(|writer| {
            writer.write_sequence(|request| {
                request.next().write_der(&information);
                // The constants of rustls hold the inside of the AlgorithmIdentifier SEQUENCE.
                request.next().write_sequence(|inside| inside.next().write_der(algorithm.as_ref()));
                request.next().write_bitvec_bytes(&signature, signature.len() * 8);
            });
        }))
    }
}

#[cfg(test)]
mod tests {
    use crate::{PrivateKey, PublicKey};

    #[test]
    fn what_a_node_sends_is_what_a_server_reads() {
        for key in [PrivateKey::generate().unwrap(), PrivateKey::generate_rsa().unwrap()] {
            assert_eq!(&PublicKey::from_request(&key.request().unwrap()).unwrap(), key.public());
        }
    }
}
