package main

import (
	"fmt"
	"strings"
)

// estate is a tree of many machines, each with a disk, spread over hosts. Each
// object is a file.
type estate struct {
	hosts   int
	objects int // all kinds together
}

const perEstate = 3 // cluster, network and image, beside each host and its pool

func host(i int) string { return fmt.Sprintf("host%03d", i) }

// machines is how many machines there are; the odd object is a disk of its own.
func (e estate) disks() int    { return (e.objects - perEstate - 2*e.hosts + 1) / 2 }
func (e estate) machines() int { return e.objects - perEstate - 2*e.hosts - e.disks() }

// files calls f with the path and the content of each file, in a fixed order.
func (e estate) files(f func(path, content string)) {
	f("cluster.yaml", document("Cluster", "bench", "{}"))
	f("networks/front.yaml", document("Network", "front", "{user: {}}"))
	f("images/debian-12.yaml", document("Image", "debian-12", fmt.Sprintf(
		`{source: {http: {url: "https://images.example.org/debian-12.qcow2"}}, sha256: "%s", format: qcow2, virtualSize: 2Gi}`, strings.Repeat("5a", 32))))
	for i := range e.hosts {
		f("hosts/"+host(i)+".yaml", document("Host", host(i), "{roles: [Hypervisor, Storage], addresses: {management: 127.0.0.1}}"))
		f("pools/"+host(i)+".yaml", document("StoragePool", "pool-"+host(i), fmt.Sprintf(
			`{host: %s, capacity: 900Ti, volumes: {file: {path: pools/fast}}, target: {embedded: {portals: ["127.0.0.1:3260"]}}}`, host(i))))
	}
	for i := range e.disks() {
		f(fmt.Sprintf("disks/%s/vm-%06d.yaml", host(i%e.hosts), i), e.disk(i, 10+i%50))
	}
	for i := range e.machines() {
		f(fmt.Sprintf("vms/%s/vm-%06d.yaml", host(i%e.hosts), i), e.machine(i))
	}
}

func (e estate) disk(i, gib int) string {
	return fmt.Sprintf(`apiVersion: reconciler/v1alpha1
kind: Disk
metadata:
  name: vm-%06d-root
  labels: {tier: web, customer: c%04d}
spec:
  pool: pool-%s
  size: %dGi
  source: {image: debian-12}
  deletionPolicy: Retain
  retention: 168h
`, i, i*7919%10000, host(i%e.hosts), gib)
}

func (e estate) machine(i int) string {
	return fmt.Sprintf(`apiVersion: reconciler/v1alpha1
kind: VirtualMachine
metadata:
  name: vm-%06d
  labels: {tier: web, customer: c%04d}
spec:
  host: %s
  cpu: {cores: 2, max: 4}
  memory: {size: 512Mi, max: 2Gi}
  disks:
    - disk: vm-%06d-root
  nics:
    - name: front
      network: front
  shutdown: {timeout: 60s}
  restartPolicy: Always
`, i, i*7919%10000, host(i%e.hosts), i)
}

func document(kind, name, spec string) string {
	return fmt.Sprintf("apiVersion: reconciler/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec: %s\n", kind, name, spec)
}
