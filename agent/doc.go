// Package agent is the loop of one host: it watches the repository, plans,
// carries out and reports. It owns the interfaces of what it drives.
package agent
