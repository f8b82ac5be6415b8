package flannel

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
)

const (
	defaultSubnetFile = "/run/flannel/subnet.env"
	defaultDataDir    = "/var/lib/cni/flannel"
)

// config is the plugin's entry of the conflist.
type config struct {
	CNIVersion    string         `json:"cniVersion"`
	Name          string         `json:"name"`
	SubnetFile    string         `json:"subnetFile"`
	DataDir       string         `json:"dataDir"` // Holds each container's rendered delegate, for CHECK and DEL.
	IPAM          map[string]any `json:"ipam"`    // Base of the delegate's ipam: e.g. another type, dataDir, more routes.
	Delegate      map[string]any `json:"delegate"`
	RuntimeConfig map[string]any `json:"runtimeConfig"`
	PrevResult    map[string]any `json:"prevResult"`
}

func parseConfig(text []byte) (*config, error) {
	parsed := &config{SubnetFile: defaultSubnetFile, DataDir: defaultDataDir}
	if err := json.Unmarshal(text, parsed); err != nil {
		return nil, err
	}
	for _, key := range []string{"name", "ipam"} {
		if _, given := parsed.Delegate[key]; given {
			return nil, fmt.Errorf("remove %q from 'delegate': flannel sets it", key)
		}
	}
	if kind, given := parsed.Delegate["type"]; given {
		if _, ok := kind.(string); !ok {
			return nil, errors.New("'type' of 'delegate' must be a string")
		}
	}
	if routes, given := parsed.IPAM["routes"]; given {
		if _, ok := routes.([]any); !ok {
			return nil, errors.New("'routes' of 'ipam' must be a list")
		}
	}
	return parsed, nil
}

// render gives the configuration of the plugin that does the work: what 'delegate' says, completed from the subnet.
func (c *config) render(subnet *subnet) map[string]any {
	delegate := map[string]any{
		"type":   "bridge",
		"ipMasq": !subnet.masq,
		"mtu":    subnet.mtu,
	}
	maps.Copy(delegate, c.Delegate)
	if _, given := delegate["isGateway"]; !given && delegate["type"] == "bridge" {
		delegate["isGateway"] = true
	}
	delegate["name"] = c.Name
	if c.CNIVersion != "" {
		delegate["cniVersion"] = c.CNIVersion
	}
	if c.RuntimeConfig != nil {
		delegate["runtimeConfig"] = c.RuntimeConfig
	}
	delegate["ipam"] = c.ipam(subnet)
	return delegate
}

func (c *config) ipam(subnet *subnet) map[string]any {
	ipam := map[string]any{"type": "host-local"}
	maps.Copy(ipam, c.IPAM)

	var ranges []any
	for _, prefix := range subnet.ranges {
		ranges = append(ranges, []any{map[string]any{"subnet": prefix.String()}})
	}
	ipam["ranges"] = ranges

	routes, _ := ipam["routes"].([]any)
	for _, network := range subnet.networks {
		routes = append(routes, map[string]any{"dst": network.String()})
	}
	ipam["routes"] = routes
	return ipam
}
