// Package dns stands in for lego's table of DNS providers, which Traefik asks for one by name when a certificate is to be had
// by ACME's DNS challenge. The whole table brings the SDKs of 40 clouds with it, more than half of the program; these providers
// need no SDK. `httpreq`, `acme-dns` and `rfc2136` lead to every other zone.
package dns

import (
	"fmt"

	"github.com/go-acme/lego/v4/challenge"
	"github.com/go-acme/lego/v4/providers/dns/acmedns"
	"github.com/go-acme/lego/v4/providers/dns/cloudflare"
	"github.com/go-acme/lego/v4/providers/dns/desec"
	"github.com/go-acme/lego/v4/providers/dns/digitalocean"
	"github.com/go-acme/lego/v4/providers/dns/duckdns"
	"github.com/go-acme/lego/v4/providers/dns/gandiv5"
	"github.com/go-acme/lego/v4/providers/dns/hetzner"
	"github.com/go-acme/lego/v4/providers/dns/httpreq"
	"github.com/go-acme/lego/v4/providers/dns/ionos"
	"github.com/go-acme/lego/v4/providers/dns/namecheap"
	"github.com/go-acme/lego/v4/providers/dns/netcup"
	"github.com/go-acme/lego/v4/providers/dns/ovh"
	"github.com/go-acme/lego/v4/providers/dns/porkbun"
	"github.com/go-acme/lego/v4/providers/dns/rfc2136"
	"github.com/go-acme/lego/v4/providers/dns/route53"
)

// NewDNSChallengeProviderByName is the provider that lego's documentation calls `name`.
func NewDNSChallengeProviderByName(name string) (challenge.Provider, error) {
	switch name {
	case "acme-dns", "acmedns":
		return acmedns.NewDNSProvider()
	case "cloudflare":
		return cloudflare.NewDNSProvider()
	case "desec":
		return desec.NewDNSProvider()
	case "digitalocean":
		return digitalocean.NewDNSProvider()
	case "duckdns":
		return duckdns.NewDNSProvider()
	case "gandiv5":
		return gandiv5.NewDNSProvider()
	case "hetzner":
		return hetzner.NewDNSProvider()
	case "httpreq":
		return httpreq.NewDNSProvider()
	case "ionos":
		return ionos.NewDNSProvider()
	case "namecheap":
		return namecheap.NewDNSProvider()
	case "netcup":
		return netcup.NewDNSProvider()
	case "ovh":
		return ovh.NewDNSProvider()
	case "porkbun":
		return porkbun.NewDNSProvider()
	case "rfc2136":
		return rfc2136.NewDNSProvider()
	case "route53":
		return route53.NewDNSProvider()
	default:
		return nil, fmt.Errorf("this build of Traefik has no DNS provider %q", name)
	}
}
