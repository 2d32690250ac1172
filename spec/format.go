package spec

import (
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// format is a rule that a string obeys beyond its type. Values that end up in
// QEMU's option syntax, a device name or an IQN are restricted to characters
// that mean nothing there: a comma in a path would start a new option.
type format struct {
	// pattern is what an editor can check; check may be stricter.
	pattern string
	max     int // length in bytes
	doc     string
	// check returns the canonical form. It is called with matching strings only.
	check func(string) (string, *problem)

	// sensitive values stand in no message and in no plan.
	sensitive bool

	what string // in messages: "is not ..."
	hint string

	re *regexp.Regexp
}

// unfit is what a check returns for a string that is nothing like the format.
var unfit = &problem{}

const (
	nameChars = `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
	safePath  = `[A-Za-z0-9._+~@/-]+`
)

var formats = compileFormats(map[string]*format{
	"name": {
		pattern: nameChars, max: 63, what: "a name",
		hint: "lower-case letters, digits and '-', at most 63 characters, a letter or digit at both ends",
		doc:  "name: lower-case letters, digits and `-`, at most 63 characters",
	},
	"label": {
		max: 256, what: "a label value", hint: "one line of at most 256 characters",
		doc: "one line, at most 256 characters", check: oneLine,
	},
	"annotation": {
		max: 65536, what: "an annotation value", hint: "at most 65536 characters",
		doc: "text, at most 65536 characters",
	},
	"clusterID": {
		pattern: `[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?`, max: 63, what: "a cluster id",
		hint: "letters, digits, '.', '_' and '-', at most 63 characters",
		doc:  "letters, digits, `.`, `_` and `-`, at most 63 characters",
	},
	"iqn": {
		// 128 of the 223 characters of RFC 7143 section 4.2.7.1 leave room for what is appended.
		pattern: `iqn\.[0-9]{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[a-z0-9]([a-z0-9.:-]*[a-z0-9])?)?`,
		max:     128, what: "the start of an iSCSI qualified name",
		hint: "write iqn.YEAR-MONTH.REVERSED.DOMAIN in lower case, such as iqn.2026-11.local.reconciler, at most 128 characters",
		doc:  "`iqn.YEAR-MONTH.REVERSED.DOMAIN[:NAME]` in lower case, at most 128 characters",
	},
	"cpuModel": {
		pattern: `[A-Za-z0-9][A-Za-z0-9._-]*`, max: 64, what: "a CPU model",
		hint: "a name that qemu-system-x86_64 -cpu help lists; features cannot be added",
		doc:  "name of a CPU model, without features",
	},
	"ip": {
		max: 64, what: "an IP address", hint: "write an IPv4 or IPv6 address of the host",
		doc: "IPv4 or IPv6 address", check: checkIP,
	},
	"sshKey": {
		pattern: `(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com|sk-ecdsa-sha2-nistp256@openssh\.com) [A-Za-z0-9+/]+={0,2}( [A-Za-z0-9._@:+-]+)?`,
		max:     2048, what: "a public SSH key",
		hint: "one line as reconciler key prints it: ssh-ed25519 AAAA…",
		doc:  "public SSH key: type, base64 and an optional comment",
	},
	"portal": {
		max: 64, what: "a portal", hint: "write ADDRESS:PORT with an IP address, such as 192.0.2.1:3260 or [2001:db8::1]:3260",
		doc: "`ADDRESS:PORT` with an IP address", check: checkPortal,
	},
	"poolPath": {
		pattern: safePath, max: 512, what: "a pool path",
		hint: "letters, digits and . _ + ~ @ - between slashes, at most 512 characters",
		doc:  "path of letters, digits and `. _ + ~ @ -`, without `..`", check: checkPoolPath,
	},
	"filePath": {
		pattern: safePath, max: 512, what: "a file path",
		hint: "letters, digits and . _ + ~ @ - between slashes, at most 512 characters",
		doc:  "relative path of letters, digits and `. _ + ~ @ -`, without `..`", check: checkFilePath,
	},
	"url": {
		pattern: `https?://\S+`, max: 2048, what: "a URL", hint: "write an http or https URL",
		doc: "`http` or `https` URL", check: checkURL,
	},
	"sha256": {
		pattern: `[0-9A-Fa-f]{64}`, max: 64, what: "a SHA-256 sum", hint: "64 hexadecimal digits, as sha256sum prints",
		doc: "64 hexadecimal digits", check: lower,
	},
	"bridge": {
		pattern: `[A-Za-z0-9][A-Za-z0-9._-]*`, max: 15, what: "the name of a network interface",
		hint: "letters, digits, '.', '_' and '-', at most 15 characters",
		doc:  "interface name of letters, digits, `.`, `_` and `-`, at most 15 characters",
	},
	"machine": {
		pattern: `q35|pc-q35-[0-9]{1,2}\.[0-9]{1,2}`, max: 16, what: "a machine type",
		hint: "q35, or a version of it such as pc-q35-7.2",
		doc:  "`q35` or `pc-q35-X.Y`",
	},
	"cmdline": {
		// Linux on x86 cuts its command line at 2048 bytes without a word.
		max: 2047, what: "a kernel command line", hint: "one line of at most 2047 characters",
		doc: "one line, at most 2047 characters", check: oneLine,
	},
	"mac": {
		pattern: `[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}`, max: 17, what: "a MAC address",
		hint: "write six pairs of hexadecimal digits, such as 52:54:00:12:34:56",
		doc:  "six pairs of hexadecimal digits, unicast", check: checkMAC,
	},
	"text": {
		max: 128 << 10, what: "a text", hint: "at most 131072 bytes, without control characters but tab and line feed",
		doc: "text of at most 131072 bytes", check: plainText,
	},
	"secretKey": {
		pattern: `[A-Za-z0-9][A-Za-z0-9._/-]*`, max: 128, what: "a key of a Secret",
		hint: "letters, digits and . _ / -, at most 128 characters",
		doc:  "letters, digits and `. _ / -`, at most 128 characters",
	},
	"sops": {
		// An empty value has nothing to encrypt; sops leaves it as it is.
		pattern: `(ENC\[AES256_GCM,data:[A-Za-z0-9+/=]+,iv:[A-Za-z0-9+/=]+,tag:[A-Za-z0-9+/=]+,type:(str|int|float|bool|bytes|time)\])?`,
		max:     MaxFileSize, what: "encrypted", sensitive: true,
		hint: sopsHint, doc: "as `sops` writes it: `ENC[AES256_GCM,…]`",
	},
	"time": {
		max: 64, what: "a time", hint: "write RFC 3339, such as 2026-11-22T10:00:00Z",
		doc: "RFC 3339 time", check: checkTime,
	},
})

func compileFormats(m map[string]*format) map[string]*format {
	for _, f := range m {
		if f.pattern != "" {
			f.pattern = `^(` + f.pattern + `)$`
			f.re = regexp.MustCompile(f.pattern)
		}
	}
	return m
}

// parse returns the canonical form of s.
func (f *format) parse(s string) (string, *problem) {
	if len(s) > f.max || f.re != nil && !f.match(s) {
		return "", f.refuse(s)
	}
	if f.check == nil {
		return s, nil
	}
	canonical, p := f.check(s)
	switch {
	case p == nil:
	case p == unfit:
		p = f.refuse(s)
	case p.hint == "":
		p.hint = f.hint
	}
	return canonical, p
}

// match spares names, which are most of a tree, the regular expression.
func (f *format) match(s string) bool {
	if f.pattern != `^(`+nameChars+`)$` {
		return f.re.MatchString(s)
	}
	return isName(s)
}

func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return s != ""
}

func (f *format) refuse(s string) *problem {
	if f.sensitive {
		return &problem{"the value is not " + f.what, f.hint}
	}
	return &problem{quote(s) + " is not " + f.what, f.hint}
}

// quote shortens what a person will read.
func quote(s string) string {
	const most = 60
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

func lower(s string) (string, *problem) { return strings.ToLower(s), nil }

func oneLine(s string) (string, *problem) {
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		return "", &problem{msg: quote(s) + " contains a control character"}
	}
	return s, nil
}

func plainText(s string) (string, *problem) {
	bad := func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' && r != '\r' }
	if i := strings.IndexFunc(s, bad); i >= 0 {
		return "", &problem{msg: "the text contains a control character"}
	}
	return s, nil
}

func checkIP(s string) (string, *problem) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return "", unfit
	}
	if p := usable(a); p != "" {
		return "", &problem{msg: quote(s) + " " + p}
	}
	return a.String(), nil
}

// usable says why an address cannot be an end of a connection.
func usable(a netip.Addr) string {
	switch {
	case a.IsUnspecified():
		return "stands for every address of the host"
	case a.IsMulticast():
		return "is a multicast address"
	case a.Zone() != "":
		return "has a zone"
	case a.Is4In6():
		return "is an IPv4 address written as IPv6"
	}
	return ""
}

func checkPortal(s string) (string, *problem) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return "", unfit
	}
	if p := usable(ap.Addr()); p != "" {
		return "", &problem{msg: quote(s) + " " + p}
	}
	if ap.Port() == 0 {
		return "", &problem{quote(s) + " has no usable port", "1 to 65535; the port of iSCSI is 3260"}
	}
	return ap.String(), nil
}

func checkPoolPath(s string) (string, *problem) {
	if p := climbs(s); p != nil {
		return "", p
	}
	if c := path.Clean(s); c == "/" || c == "." {
		return "", &problem{quote(s) + " is not a directory of the pool's own", "name one below it"}
	}
	return path.Clean(s), nil
}

func checkFilePath(s string) (string, *problem) {
	if strings.HasPrefix(s, "/") {
		return "", &problem{quote(s) + " is an absolute path", "the path starts below the image directory"}
	}
	if p := climbs(s); p != nil {
		return "", p
	}
	if c := path.Clean(s); c == "." || strings.HasSuffix(s, "/") {
		return "", &problem{quote(s) + " does not name a file", ""}
	}
	return path.Clean(s), nil
}

func climbs(s string) *problem {
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return &problem{quote(s) + ` climbs out with ".."`, "write the path without .."}
		}
	}
	return nil
}

func checkURL(s string) (string, *problem) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Hostname() == "" || u.Opaque != "":
		return "", unfit
	case u.User != nil:
		// Not repeated: what stands before the @ may be a password.
		return "", &problem{"the URL has a user or password in it", "anyone who reads the repository reads it too"}
	case u.Fragment != "":
		return "", &problem{quote(s) + " has a fragment", "a server never sees what follows #"}
	case strings.IndexFunc(s, func(r rune) bool { return r > unicode.MaxASCII || unicode.IsControl(r) }) >= 0:
		return "", &problem{quote(s) + " has characters a URL cannot have", "escape them with %"}
	}
	return s, nil
}

func checkMAC(s string) (string, *problem) {
	s = strings.ToLower(s)
	first, err := strconv.ParseUint(s[:2], 16, 8)
	if err != nil {
		return "", unfit
	}
	if first&1 != 0 {
		return "", &problem{quote(s) + " is a multicast address", "the second digit of a card's address is even"}
	}
	if s == "00:00:00:00:00:00" {
		return "", &problem{quote(s) + " is no card's address", ""}
	}
	return s, nil
}

func checkTime(s string) (string, *problem) {
	if _, err := time.Parse(time.RFC3339, s); err != nil {
		return "", unfit
	}
	return s, nil
}
