// A guest's life through go-libvirt: what it prints is compared between daemons.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"time"

	"github.com/digitalocean/go-libvirt"
)

func say(what string, answer interface{}, err error) {
	if err != nil {
		fmt.Printf("%s: error %v\n", what, err)
		return
	}
	fmt.Printf("%s: %v\n", what, answer)
}

func main() {
	socket, err := net.DialTimeout("unix", os.Args[1], 5*time.Second)
	if err != nil {
		log.Fatal(err)
	}
	l := libvirt.New(socket)
	if err := l.Connect(); err != nil {
		log.Fatal(err)
	}
	version, err := l.ConnectGetLibVersion()
	say("version", version, err)
	kind, err := l.ConnectGetType()
	say("type", kind, err)
	xml, _ := os.ReadFile(os.Args[2])
	heard, err := l.LifecycleEvents(context.Background())
	say("watching", "", err)

	domain, err := l.DomainDefineXML(string(xml))
	say("define", domain.Name, err)
	domains, count, err := l.ConnectListAllDomains(1, libvirt.ConnectListDomainsInactive)
	say("list", []interface{}{len(domains), count}, err)
	say("start", "", l.DomainCreate(domain))
	say("again", "", l.DomainCreate(domain))
	state, reason, err := l.DomainGetState(domain, 0)
	say("state", []interface{}{state, reason}, err)
	stats, err := l.ConnectGetAllDomainStats([]libvirt.Domain{domain}, uint32(libvirt.DomainStatsState), 0)
	say("stats", stats[0].Params, err)
	_, maximum, memory, cpus, _, err := l.DomainGetInfo(domain)
	say("info", []interface{}{maximum, memory, cpus}, err)
	_, capacity, _, err := l.DomainGetBlockInfo(domain, "vda", 0)
	say("block", capacity, err)
	answer, err := l.Run("gopher", []byte(`{"execute":"query-status"}`))
	say("monitor", string(answer[:20]), err)
	say("tune", "", l.SetBlockIOTune("gopher", "vda", libvirt.BlockLimit{Name: "total_iops_sec", Value: 100}))
	limits, err := l.GetBlockIOTune("gopher", "vda")
	say("tuned", limits, err)
	say("suspend", "", l.DomainSuspend(domain))
	say("resume", "", l.DomainResume(domain))
	_, err = l.DomainLookupByName("nobody")
	say("nobody", "", err)
	say("missing", libvirt.IsNotFound(err), nil)
	pools, err := l.StoragePools(libvirt.ConnectListStoragePoolsActive)
	say("pools", len(pools), err)
	secrets, err := l.Secrets()
	say("secrets", len(secrets), err)
	say("destroy", "", l.Destroy("gopher", libvirt.DomainDestroyDefault))
	say("undefine", "", l.Undefine("gopher", libvirt.DomainUndefineNvram))
	for {
		select {
		case event := <-heard:
			fmt.Printf("event: %s %d %d\n", event.Dom.Name, event.Event, event.Detail)
			if event.Event == int32(libvirt.DomainEventUndefined) {
				say("disconnect", "", l.Disconnect())
				return
			}
		case <-time.After(30 * time.Second):
			fmt.Println("the events stopped")
			return
		}
	}
}
