// Package testserver stands in for the package of that name in k8s.io/apiserver: the datastore under Kubernetes' storage
// tests is a program of its own, named by the environment, and not an etcd inside the test.
package testserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"google.golang.org/grpc"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// commandVariable holds the datastore's program and arguments as a JSON array of strings, in which {dir} stands for an
// empty folder and {socket} for the path of the unix socket to serve.
const commandVariable = "STORAGE_TESTS_DATASTORE"

// patience is how long a datastore may take to start, and to stop, on a busy machine.
const patience = 60 * time.Second

// NewTestConfig returns the configuration that tests change. Only WatchProgressNotifyInterval is heeded, by the flag that
// etcd, kine and k3s all have for it.
func NewTestConfig(testing.TB) *embed.Config {
	return embed.NewConfig()
}

// RunEtcd starts an empty datastore and returns a client of it. It has to stop cleanly when the test ends.
func RunEtcd(t testing.TB, cfg *embed.Config) *kubernetes.Client {
	t.Helper()
	if cfg == nil {
		cfg = NewTestConfig(t)
	}
	client, err := kubernetes.New(clientv3.Config{
		Endpoints:   []string{"unix://" + start(t, cfg.WatchProgressNotifyInterval)},
		DialTimeout: 10 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()},
		Logger:      zaptest.NewLogger(t, zaptest.Level(zapcore.ErrorLevel)).Named("etcd-client"),
	})
	if err != nil {
		t.Fatal(err)
	}
	// Or it would look for its datastore for as long as tests run.
	t.Cleanup(func() { client.Close() })
	client.KV = storagetesting.NewKVRecorder(client.KV)
	client.Kubernetes = storagetesting.NewKubernetesRecorder(client.Kubernetes)
	return client
}

// start returns the socket of a datastore that accepts connections. The test ends it.
func start(t testing.TB, progressInterval time.Duration) string {
	t.Helper()
	// t.TempDir holds the test's name: too long a path for a socket.
	dir, err := os.MkdirTemp("", "storage-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	command, err := command(dir, socket, progressInterval)
	if err != nil {
		t.Fatal(err)
	}
	process, err := spawn(command)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := process.stop(); err != nil {
			t.Errorf("The datastore did not stop cleanly: %v", err)
		}
		if t.Failed() {
			t.Logf("The datastore printed:\n%s", &process.output)
		}
	})
	if err := process.waitFor(socket); err != nil {
		t.Fatal(err)
	}
	return socket
}

func command(dir, socket string, progressInterval time.Duration) (*exec.Cmd, error) {
	var words []string
	if err := json.Unmarshal([]byte(os.Getenv(commandVariable)), &words); err != nil || len(words) == 0 {
		return nil, fmt.Errorf("%s has to be a JSON array of a program and its arguments", commandVariable)
	}
	places := strings.NewReplacer("{dir}", dir, "{socket}", socket)
	for i, word := range words {
		words[i] = places.Replace(word)
	}
	if progressInterval > 0 {
		words = append(words, "--watch-progress-notify-interval="+progressInterval.String())
	}
	command := exec.Command(words[0], words[1:]...)
	command.Dir = dir
	return command, nil
}

// process is a datastore that dies with the test binary, however that ends.
type process struct {
	command *exec.Cmd
	// output is complete once ended is closed.
	output bytes.Buffer
	ended  chan struct{}
	result error
}

func spawn(command *exec.Cmd) (*process, error) {
	p := &process{command: command, ended: make(chan struct{})}
	command.Stdout, command.Stderr = &p.output, &p.output
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that forked for the parent's death: this one lasts as long as the child.
		runtime.LockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			p.result = command.Wait()
			close(p.ended)
		}
	}()
	return p, <-started
}

// waitFor returns once the socket accepts connections: gRPC would wait a second after its first refusal.
func (p *process) waitFor(socket string) error {
	deadline := time.Now().Add(patience)
	for {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			return connection.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the datastore does not listen after %s: %w", patience, err)
		}
		select {
		case <-p.ended:
			return errors.New("the datastore ended instead of listening")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stop ends the datastore by SIGTERM. It may end by that signal, as etcd does, but by no other and with no failure.
func (p *process) stop() error {
	select {
	case <-p.ended:
		return fmt.Errorf("it had ended by itself: %s", p.command.ProcessState)
	default:
	}
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.command.Process.Kill()
		<-p.ended
		return fmt.Errorf("it ran on for %s after SIGTERM", patience)
	}
	if status := p.command.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() && status.Signal() == syscall.SIGTERM {
		return nil
	}
	return p.result
}
