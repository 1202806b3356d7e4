// The smallest server on the centrifuge library: it accepts everybody, lets them subscribe to anything, and publishes
// what it is told on standard input, in the words of bare-sender (benches/native):
//
//	shared PER_S SECONDS BYTES WINDOW_MS SLICES
//	unshared PER_S SECONDS BYTES TOPICS
//	lone COUNT EVERY_MS BYTES
//
// Each is answered with a line of JSON when it is done. The second argument is the library's WriteDelay in
// milliseconds, its own batching: 0 sends every publication at once.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"
)

const sharedChannel = "bench.a"

// One channel's events are numbered from 0 for as long as the process lives.
type publisher struct {
	node    *centrifuge.Node
	numbers map[string]uint64
}

func (p *publisher) publish(channel string, due time.Time, bytes int) {
	number := p.numbers[channel]
	p.numbers[channel] = number + 1
	head := fmt.Sprintf(`{"at":%d,"n":%d,"data":"`, due.UnixMicro(), number)
	pad := max(bytes-len(head)-2, 0)
	if _, err := p.node.Publish(channel, []byte(head+strings.Repeat("x", pad)+`"}`)); err != nil {
		log.Fatal(err)
	}
}

// Publishes what is due, so many a second for so long; late events keep the time when they were due.
func (p *publisher) series(perS, seconds float64, bytes int, channel func(int) string) int {
	began, all := time.Now(), int(perS*seconds)
	for done := 0; done < all; {
		due := min(int(time.Since(began).Seconds()*perS)+1, all)
		for ; done < due; done++ {
			p.publish(channel(done), began.Add(time.Duration(float64(done)/perS*1e9)), bytes)
		}
		time.Sleep(time.Millisecond)
	}
	return all
}

func (p *publisher) command(line string) (int, error) {
	var perS, seconds, window, slices float64
	var bytes, count, everyMs, topics int
	name, rest, _ := strings.Cut(line, " ")
	switch name {
	case "shared":
		if _, err := fmt.Sscan(rest, &perS, &seconds, &bytes, &window, &slices); err != nil {
			return 0, err
		}
		return p.series(perS, seconds, bytes, func(int) string { return sharedChannel }), nil
	case "unshared":
		if _, err := fmt.Sscan(rest, &perS, &seconds, &bytes, &topics); err != nil {
			return 0, err
		}
		return p.series(perS, seconds, bytes, func(at int) string {
			return fmt.Sprintf("%s.%d", sharedChannel, at%topics)
		}), nil
	case "lone":
		if _, err := fmt.Sscan(rest, &count, &everyMs, &bytes); err != nil {
			return 0, err
		}
		for done := range count {
			if done > 0 {
				time.Sleep(time.Duration(everyMs) * time.Millisecond)
			}
			p.publish(sharedChannel, time.Now(), bytes)
		}
		return count, nil
	}
	return 0, fmt.Errorf("unknown command %q", line)
}

func run(port string, writeDelay time.Duration) error {
	node, err := centrifuge.New(centrifuge.Config{LogLevel: centrifuge.LogLevelError})
	if err != nil {
		return err
	}
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{
			Credentials: &centrifuge.Credentials{UserID: "bench"},
			WriteDelay:  writeDelay,
			// As many as come within the delay: the default of 16 is a quarter of it at a thousand a second.
			MaxMessagesInFrame: -1,
		}, nil
	})
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(_ centrifuge.SubscribeEvent, answer centrifuge.SubscribeCallback) {
			answer(centrifuge.SubscribeReply{}, nil)
		})
	})
	if err := node.Run(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	everybody := func(*http.Request) bool { return true }
	mux := http.NewServeMux()
	mux.Handle("/ws/", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{CheckOrigin: everybody}))
	go func() { log.Fatal(http.Serve(listener, mux)) }()
	publish := &publisher{node, map[string]uint64{}}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		began := time.Now()
		count, err := publish.command(lines.Text())
		if err != nil {
			return err
		}
		told, err := json.Marshal(map[string]any{"published": count, "seconds": time.Since(began).Seconds()})
		if err != nil {
			return err
		}
		fmt.Println(string(told))
	}
	return lines.Err()
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("centrifuge-bench PORT WRITE_DELAY_MS")
	}
	delay, err := time.ParseDuration(os.Args[2] + "ms")
	if err != nil {
		log.Fatal(err)
	}
	if err := run(os.Args[1], delay); err != nil {
		log.Fatal(err)
	}
}
