// The program remotedialer is one end of a tunnel, made of the original library. It has the commands, and prints the lines, of the
// program tunnel-end (tests/tunnel), so that tests and benches can put either at either end.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rancher/remotedialer"
)

const (
	usage = "usage: remotedialer server TARGET | client SERVER TARGET"
	// path is where k3s takes tunnels.
	path = "/v1-k3s/connect"
	// node is what the only client is called.
	node = "node"
)

func main() {
	log.SetFlags(0)
	// Whoever started this program holds its standard input, until it is gone itself.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	switch {
	case len(os.Args) == 3 && os.Args[1] == "server":
		log.Fatal(serve(os.Args[2]))
	case len(os.Args) == 4 && os.Args[1] == "client":
		log.Fatal(connect(os.Args[2], os.Args[3]))
	default:
		log.Fatal(usage)
	}
}

// serve takes tunnels at the address that it prints first. Once there is one, it takes connections that lead through it to target, at
// the address that it prints then.
func serve(target string) error {
	tunnels := remotedialer.New(func(*http.Request) (string, bool, error) { return node, true, nil }, remotedialer.DefaultErrorWriter)
	websockets, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	entry, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(path, tunnels)
	go func() { log.Fatal(http.Serve(websockets, mux)) }()
	fmt.Println(websockets.Addr())
	for !tunnels.HasSession(node) {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(entry.Addr())
	for {
		connection, err := entry.Accept()
		if err != nil {
			return err
		}
		go lead(tunnels, connection, target)
	}
}

// lead carries bytes until one side ends, as k3s does for CONNECT.
func lead(tunnels *remotedialer.Server, here net.Conn, target string) {
	there, err := tunnels.Dialer(node)(context.Background(), "tcp", target)
	if err != nil {
		here.Close()
		return
	}
	var once sync.Once
	end := func() { here.Close(); there.Close() }
	go func() {
		defer once.Do(end)
		io.Copy(there, here)
	}()
	defer once.Do(end)
	io.Copy(here, there)
}

// connect opens a tunnel through which target is reached, and nothing else.
func connect(server, target string) error {
	allowed := func(proto, address string) bool { return proto == "tcp" && address == target }
	url := "ws://" + server + path
	return remotedialer.ConnectToProxy(context.Background(), url, nil, allowed, &websocket.Dialer{}, nil)
}
