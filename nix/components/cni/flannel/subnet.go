package flannel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// subnet is what the node's overlay writes to subnet.env, in flannel's form: NAME=value lines.
type subnet struct {
	networks []netip.Prefix // FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK: the cluster's pod addresses, comma-separated.
	ranges   []netip.Prefix // FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET: this node's share, at most one a family.
	mtu      uint64         // FLANNEL_MTU, bytes.
	masq     bool           // FLANNEL_IPMASQ: the overlay masquerades, so the bridge must not.
}

// waitForSubnet reads the file, and waits for it as long as ctx allows while it does not exist.
func waitForSubnet(ctx context.Context, path string) (*subnet, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(path)
		if err == nil {
			parsed, err := parseSubnet(string(text))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			return parsed, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not exist: the node has no pod CIDR yet", path)
		case <-tick.C:
		}
	}
}

func parseSubnet(text string) (*subnet, error) {
	var parsed subnet
	given := map[string]bool{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		given[name] = true
		var err error
		switch name {
		case "FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK":
			err = appendPrefixes(&parsed.networks, value)
		case "FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET":
			err = appendPrefixes(&parsed.ranges, value)
		case "FLANNEL_MTU":
			parsed.mtu, err = strconv.ParseUint(value, 10, 32)
		case "FLANNEL_IPMASQ":
			parsed.masq, err = strconv.ParseBool(value)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	switch {
	case len(parsed.networks) == 0:
		return nil, errors.New("neither FLANNEL_NETWORK nor FLANNEL_IPV6_NETWORK is set")
	case len(parsed.ranges) == 0:
		return nil, errors.New("neither FLANNEL_SUBNET nor FLANNEL_IPV6_SUBNET is set")
	case !given["FLANNEL_MTU"]:
		return nil, errors.New("FLANNEL_MTU is not set")
	case !given["FLANNEL_IPMASQ"]:
		return nil, errors.New("FLANNEL_IPMASQ is not set")
	}
	return &parsed, nil
}

// appendPrefixes takes host bits away: FLANNEL_SUBNET names the gateway's address.
func appendPrefixes(to *[]netip.Prefix, value string) error {
	for item := range strings.SplitSeq(value, ",") {
		prefix, err := netip.ParsePrefix(item)
		if err != nil {
			return err
		}
		*to = append(*to, prefix.Masked())
	}
	return nil
}
