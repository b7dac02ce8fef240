// A reverse proxy as Go programs have it: net/http/httputil.ReverseProxy and nothing else. It stands
// for the watchdogs and sidecars of other platforms, which are this with more work on each call.
//
//	reverse_proxy LISTEN SMALL LARGE     addresses; below /http/g/ calls go to LARGE, others to SMALL
package main

import (
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
)

func main() {
	small, large := proxy(os.Args[2]), proxy(os.Args[3])
	serve := func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/http/g/") {
			large.ServeHTTP(w, r)
		} else {
			small.ServeHTTP(w, r)
		}
	}
	log.Fatal(http.ListenAndServe(os.Args[1], http.HandlerFunc(serve)))
}

func proxy(address string) *httputil.ReverseProxy {
	made := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	// As many kept connections as there are callers: the default of two makes a new one for most calls.
	made.Transport = &http.Transport{MaxIdleConns: 1024, MaxIdleConnsPerHost: 512}
	made.ErrorLog = log.New(io.Discard, "", 0)
	return made
}
