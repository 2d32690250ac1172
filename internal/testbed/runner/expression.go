package runner

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// scope resolves a dotted name, such as github.event.number. What it does not
// know is an error: an expression that turns empty in silence hides what a
// workflow really does.
type scope func(path []string) (any, error)

// expand replaces every ${{ … }} in a text.
func expand(text string, names scope) (string, error) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "${{")
		b.WriteString(before)
		if !found {
			return b.String(), nil
		}
		source, after, closed := cutExpression(rest)
		if !closed {
			return "", fmt.Errorf("${{%s has no end", rest)
		}
		v, err := evaluate(source, names)
		if err != nil {
			return "", fmt.Errorf("${{%s}}: %w", source, err)
		}
		s, err := asText(v)
		if err != nil {
			return "", fmt.Errorf("${{%s}}: %w", source, err)
		}
		b.WriteString(s)
		text = after
	}
}

// cutExpression finds the end of an expression outside of its strings.
func cutExpression(s string) (source, after string, ok bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		if s[i] == '\'' {
			quoted = !quoted
		}
		if !quoted && strings.HasPrefix(s[i:], "}}") {
			return s[:i], s[i+2:], true
		}
	}
	return "", "", false
}

// asText is a value as it is put into a text.
func asText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	case nil:
		return "", nil
	}
	return "", errors.New("an object or a list is no text")
}

func truthy(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case float64:
		return v != 0
	}
	return true
}

// evaluate works out one expression: names, literals, !, ==, !=, &&, ||,
// parentheses, and the functions that names knows as "name()".
func evaluate(source string, names scope) (v any, err error) {
	p := &parser{names: names}
	if p.tokens, err = tokenize(source); err != nil {
		return nil, err
	}
	v, err = p.or()
	if err == nil && len(p.tokens) > 0 {
		err = fmt.Errorf("%q is not expected", p.tokens[0])
	}
	return v, err
}

func tokenize(s string) ([]string, error) {
	var list []string
	for i := 0; i < len(s); {
		switch c := rune(s[i]); {
		case unicode.IsSpace(c):
			i++
		case c == '\'':
			end := strings.IndexByte(s[i+1:], '\'')
			if end < 0 {
				return nil, errors.New("a string has no end")
			}
			list = append(list, s[i:i+end+1])
			i += end + 2
		case operator(s[i:]) != "":
			list = append(list, operator(s[i:]))
			i += len(operator(s[i:]))
		case isName(c):
			j := i
			for j < len(s) && (isName(rune(s[j])) || s[j] == '.' || s[j] == '-') {
				j++
			}
			list = append(list, s[i:j])
			i = j
		default:
			return nil, fmt.Errorf("%q is not known to this runner", c)
		}
	}
	return list, nil
}

// operator is the one that s starts with, the longest first.
func operator(s string) string {
	for _, op := range []string{"!=", "==", "&&", "||", "!", "(", ")"} {
		if strings.HasPrefix(s, op) {
			return op
		}
	}
	return ""
}

func isName(c rune) bool { return c == '_' || unicode.IsLetter(c) || unicode.IsDigit(c) }

type parser struct {
	tokens []string
	names  scope
}

func (p *parser) take(token string) bool {
	if len(p.tokens) == 0 || p.tokens[0] != token {
		return false
	}
	p.tokens = p.tokens[1:]
	return true
}

func (p *parser) or() (any, error) {
	v, err := p.and()
	for err == nil && p.take("||") {
		var w any
		if w, err = p.and(); !truthy(v) {
			v = w
		}
	}
	return v, err
}

func (p *parser) and() (any, error) {
	v, err := p.equal()
	for err == nil && p.take("&&") {
		var w any
		if w, err = p.equal(); truthy(v) {
			v = w
		}
	}
	return v, err
}

func (p *parser) equal() (any, error) {
	v, err := p.unary()
	for err == nil {
		same := p.take("==")
		if !same && !p.take("!=") {
			break
		}
		var w any
		if w, err = p.unary(); err != nil {
			break
		}
		var a, b string
		if a, err = asText(v); err != nil {
			break
		}
		if b, err = asText(w); err != nil {
			break
		}
		// Strings are compared without regard to case.
		v = strings.EqualFold(a, b) == same
	}
	return v, err
}

func (p *parser) unary() (any, error) {
	if p.take("!") {
		v, err := p.unary()
		return !truthy(v), err
	}
	if p.take("(") {
		v, err := p.or()
		if err == nil && !p.take(")") {
			err = errors.New("a parenthesis has no end")
		}
		return v, err
	}
	if len(p.tokens) == 0 {
		return nil, errors.New("it ends too early")
	}
	token := p.tokens[0]
	p.tokens = p.tokens[1:]
	if text, ok := strings.CutPrefix(token, "'"); ok {
		return text, nil
	}
	switch token {
	case "true", "false":
		return token == "true", nil
	case "null":
		return nil, nil
	}
	if n, err := strconv.ParseFloat(token, 64); err == nil {
		return n, nil
	}
	if p.take("(") {
		if !p.take(")") {
			return nil, fmt.Errorf("%s: a function with arguments is not known to this runner", token)
		}
		token += "()"
	}
	return p.names(strings.Split(token, "."))
}
