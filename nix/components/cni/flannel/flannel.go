// Package flannel is the CNI plugin that configurations made for k3s and flannel name: it completes the node's bridge
// configuration from subnet.env and hands over to bridge and host-local. Keys and defaults are those of
// github.com/flannel-io/cni-plugin; unlike it, ADD waits for subnet.env, and CHECK and STATUS are served.
package flannel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/utils/buildversion"
)

// subnetPatience is how long ADD waits for the node's pod CIDR: failing costs the pod a whole retry of kubelet's.
const subnetPatience = 20 * time.Second

// errPluginNotAvailable is the CNI specification's answer of STATUS before ADD can work.
const errPluginNotAvailable = 50

// Main runs the plugin.
func Main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Check: check, Del: del, Status: status}, version.All, buildversion.BuildString("flannel"))
}

func add(args *skel.CmdArgs) error {
	conf, err := parse(args)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), subnetPatience)
	defer cancel()
	subnet, err := waitForSubnet(ctx, conf.SubnetFile)
	if err != nil {
		return types.NewError(types.ErrTryAgainLater, "no subnet for this node", err.Error())
	}
	delegate := conf.render(subnet)
	text, err := json.Marshal(delegate)
	if err != nil {
		return err
	}
	if err := save(conf.DataDir, args.ContainerID, text); err != nil {
		return types.NewError(types.ErrIOFailure, "cannot keep the delegate's configuration", err.Error())
	}
	kind := delegate["type"].(string) // parseConfig lets nothing else through.
	result, err := invoke.DelegateAdd(context.Background(), kind, text, nil)
	if err != nil {
		return fmt.Errorf("delegate %s: %w", kind, err)
	}
	return result.Print()
}

func check(args *skel.CmdArgs) error {
	conf, err := parse(args)
	if err != nil {
		return err
	}
	delegate, err := load(conf.DataDir, args.ContainerID)
	if err != nil {
		return types.NewError(types.ErrUnknownContainer, "no configuration kept for this container", err.Error())
	}
	delegate.conf["prevResult"] = conf.PrevResult
	text, err := json.Marshal(delegate.conf)
	if err != nil {
		return err
	}
	return invoke.DelegateCheck(context.Background(), delegate.kind, text, nil)
}

// del undoes what add did for the container, with the configuration that add used. No configuration kept means that
// nothing is left to undo.
func del(args *skel.CmdArgs) error {
	conf, err := parse(args)
	if err != nil {
		return err
	}
	delegate, err := load(conf.DataDir, args.ContainerID)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, "cannot read the configuration kept for this container", err.Error())
	}
	if err := invoke.DelegateDel(context.Background(), delegate.kind, delegate.text, nil); err != nil {
		return fmt.Errorf("delegate %s: %w", delegate.kind, err)
	}
	return os.Remove(filepath.Join(conf.DataDir, args.ContainerID))
}

func status(args *skel.CmdArgs) error {
	conf, err := parse(args)
	if err != nil {
		return err
	}
	expired, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := waitForSubnet(expired, conf.SubnetFile); err != nil {
		return types.NewError(errPluginNotAvailable, "no subnet for this node", err.Error())
	}
	return nil
}

func parse(args *skel.CmdArgs) (*config, error) {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "flannel configuration", err.Error())
	}
	return conf, nil
}

// kept is a delegate's configuration as add left it.
type kept struct {
	text []byte
	conf map[string]any
	kind string
}

// save writes by rename: a power cut must not leave half a file that makes DEL fail for ever.
func save(folder, container string, text []byte) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(folder, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	_, err = temporary.Write(text)
	if err := errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), filepath.Join(folder, container))
}

func load(folder, container string) (*kept, error) {
	path := filepath.Join(folder, container)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var conf map[string]any
	if err := json.Unmarshal(text, &conf); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	kind, ok := conf["type"].(string)
	if !ok {
		return nil, fmt.Errorf("%s: no 'type'", path)
	}
	return &kept{text: text, conf: conf, kind: kind}, nil
}
