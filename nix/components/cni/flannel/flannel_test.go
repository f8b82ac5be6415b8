package flannel

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const env = "FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.3.1/24\nFLANNEL_IPV6_NETWORK=fd00:42::/56\n" +
	"FLANNEL_IPV6_SUBNET=fd00:42:0:3::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

func TestTheDelegateIsCompletedFromTheSubnet(t *testing.T) {
	for name, example := range map[string]struct{ conf, want string }{
		"defaults": {
			`{"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel"}`,
			`{"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "ipMasq": false, "isGateway": true, "mtu": 1450,
			  "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.3.0/24"}], [{"subnet": "fd00:42:0:3::/64"}]],
			           "routes": [{"dst": "10.42.0.0/16"}, {"dst": "fd00:42::/56"}]}}`,
		},
		"what the user says wins": {
			`{"name": "cbr0", "delegate": {"type": "ptp", "mtu": 1400, "ipMasq": true}, "runtimeConfig": {"mac": "x"},
			  "ipam": {"type": "static", "dataDir": "/leases", "routes": [{"dst": "192.0.2.0/24"}]}}`,
			`{"name": "cbr0", "type": "ptp", "ipMasq": true, "mtu": 1400, "runtimeConfig": {"mac": "x"},
			  "ipam": {"type": "static", "dataDir": "/leases", "ranges": [[{"subnet": "10.42.3.0/24"}], [{"subnet": "fd00:42:0:3::/64"}]],
			           "routes": [{"dst": "192.0.2.0/24"}, {"dst": "10.42.0.0/16"}, {"dst": "fd00:42::/56"}]}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			conf, err := parseConfig([]byte(example.conf))
			if err != nil {
				t.Fatal(err)
			}
			subnet, err := parseSubnet(env)
			if err != nil {
				t.Fatal(err)
			}
			got, want := canonical(t, conf.render(subnet)), canonical(t, json.RawMessage(example.want))
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func canonical(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	var parsed any
	if err := json.Unmarshal(text, &parsed); err != nil {
		t.Fatal(err)
	}
	text, _ = json.Marshal(parsed)
	return string(text)
}

func TestWrongInputIsNamed(t *testing.T) {
	for conf, reason := range map[string]string{
		`{"delegate": {"name": "x"}}`: `remove "name"`,
		`{"delegate": {"ipam": {}}}`:  `remove "ipam"`,
		`{"delegate": {"type": 1}}`:   "must be a string",
		`{"ipam": {"routes": {}}}`:    "must be a list",
		`{`:                           "unexpected end",
	} {
		if _, err := parseConfig([]byte(conf)); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v; want %q", conf, err, reason)
		}
	}
	for _, name := range []string{"FLANNEL_MTU", "FLANNEL_IPMASQ"} {
		text := strings.ReplaceAll(env, name, "OTHER")
		if _, err := parseSubnet(text); err == nil || err.Error() != name+" is not set" {
			t.Errorf("without %s: %v", name, err)
		}
	}
	if _, err := parseSubnet("FLANNEL_SUBNET=10.42.3/24\n"); err == nil || !strings.HasPrefix(err.Error(), "FLANNEL_SUBNET: ") {
		t.Error(err)
	}
}

func TestTheSubnetIsWaitedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "subnet.env")
	expired, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := waitForSubnet(expired, path); err == nil || !strings.Contains(err.Error(), "no pod CIDR yet") {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	written := make(chan error, 1)
	go func() {
		part := path + ".part"
		err := os.WriteFile(part, []byte(env), 0o644)
		if err == nil {
			err = os.Rename(part, path)
		}
		written <- err
	}()
	subnet, err := waitForSubnet(ctx, path)
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if err != nil || subnet.mtu != 1450 {
		t.Fatal(subnet, err)
	}
}

func TestWhatIsKeptReadsBack(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "kept")
	if err := save(folder, "container", []byte(`{"type":"bridge","mtu":1450}`)); err != nil {
		t.Fatal(err)
	}
	kept, err := load(folder, "container")
	if err != nil || kept.kind != "bridge" {
		t.Fatal(kept, err)
	}
	if entries, _ := os.ReadDir(folder); len(entries) != 1 {
		t.Errorf("only the container's file stays: %v", entries)
	}
}
