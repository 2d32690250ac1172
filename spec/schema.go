package spec

import (
	"encoding/json"
	"math"
)

// member is one member of an object.
type member struct {
	name  string
	value any
}

// object is a JSON object whose members keep their order.
type object []member

// MarshalJSON writes the members in their order.
func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), value...)
	}
	return append(b, '}'), nil
}

// Schema is the JSON Schema (draft 2020-12) of one document of any kind. It
// cannot say everything that Parse and Build check: not the range of a size,
// nor anything about references.
func Schema() []byte {
	var kinds []string
	var cases []any
	defs := object{}
	for _, d := range definitions {
		kinds = append(kinds, string(d.kind))
		then := object{{"properties", object{{"spec", object{{"$ref", "#/$defs/" + string(d.kind)}}}}}}
		switch {
		case d.kind == KindSecret:
			then = append(then, member{"required", []string{"spec", "sops"}})
		case d.spec.needed():
			then = append(then, member{"required", []string{"spec"}})
		}
		cases = append(cases, object{
			{"if", object{{"properties", object{{"kind", object{{"const", d.kind}}}}}, {"required", []string{"kind"}}}},
			{"then", then},
		})
		defs = append(defs, member{string(d.kind), d.spec.schema(d.doc)})
	}
	defs = append(defs, member{"Meta", definitions[0].meta.schema("Metadata of the object.")})
	root := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", "https://reconciler.local/schema/" + APIVersion + ".json"},
		{"title", "reconciler spec"},
		{"type", "object"},
		{"properties", object{
			{"apiVersion", object{{"const", APIVersion}, {"description", "Version of the language."}}},
			{"kind", object{{"enum", kinds}, {"description", "Kind of the object."}}},
			{"metadata", object{{"$ref", "#/$defs/Meta"}}},
			{"spec", object{{"type", "object"}}},
			{"sops", object{{"type", "object"}, {"description", "What the sops program says about the file it encrypted."}}},
		}},
		{"required", []string{"apiVersion", "kind", "metadata"}},
		{"additionalProperties", false},
		{"allOf", cases},
		{"$defs", defs},
	}
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		panic("spec: schema: " + err.Error()) // the values are all ours
	}
	return append(out, '\n')
}

func (s *structure) schema(doc string) object {
	props := object{}
	var required []string
	for _, f := range s.fields {
		props = append(props, member{f.name, f.schema()})
		if f.required {
			required = append(required, f.name)
		}
	}
	o := object{{"type", "object"}}
	if doc != "" {
		o = append(o, member{"description", doc})
	}
	o = append(o, member{"properties", props}, member{"additionalProperties", false})
	if required != nil {
		o = append(o, member{"required", required})
	}
	switch s.choice {
	case oneOf:
		o = append(o, member{"minProperties", 1}, member{"maxProperties", 1})
	case atMostOneOf:
		o = append(o, member{"maxProperties", 1})
	case textOrSecret:
		o = append(o, member{"oneOf", []any{
			object{{"required", []string{"inline"}}},
			object{{"required", []string{"secret", "key"}}},
		}}, member{"dependentRequired", object{{"secret", []string{"key"}}, {"key", []string{"secret"}}}})
	}
	return o
}

func (f *field) schema() object {
	doc := member{"description", f.about()}
	switch f.shape {
	case shapeStruct, shapePtr:
		return f.elem.schema(f.about())
	case shapeEmpty:
		return object{{"type", "object"}, doc, {"maxProperties", 0}}
	case shapeList:
		return object{{"type", "array"}, doc, {"maxItems", maxEntries}, {"items", f.elem.schema("")}}
	case shapeStrings:
		o := object{{"type", "array"}, doc, {"maxItems", maxEntries}, {"items", f.stringSchema()}}
		if f.required {
			o = append(o, member{"minItems", 1})
		}
		return o
	case shapeMap:
		o := object{{"type", "object"}, doc, {"maxProperties", maxEntries},
			{"propertyNames", object{{"pattern", `^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$`}}},
			{"additionalProperties", f.stringSchema()}}
		if f.required {
			o = append(o, member{"minProperties", 1})
		}
		return o
	case shapeString:
		o := append(f.stringSchema(), doc)
		if f.def != "" {
			o = append(o, member{"default", f.def})
		}
		return o
	}
	var o object
	switch f.shape {
	case shapeInt:
		o = object{{"type", "integer"}, doc}
	case shapeFloat:
		o = object{{"type", "number"}, doc}
	case shapeSize:
		o = object{{"type", []string{"string", "integer"}}, doc, {"pattern", `^(0|[0-9]+(Ki|Mi|Gi|Ti)?)$`}}
	case shapeDuration:
		o = object{{"type", "string"}, doc, {"pattern", `^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$`}}
	}
	if f.shape != shapeDuration {
		o = append(o, member{"minimum", f.min})
		if f.max != 0 && f.max != math.MaxInt64 {
			o = append(o, member{"maximum", f.max})
		}
		if f.multiple > 1 {
			o = append(o, member{"multipleOf", f.multiple})
		}
	}
	if f.def != "" {
		o = append(o, member{"default", f.defaultJSON()})
	}
	return o
}

// defaultJSON is the default as the type that stands in YAML.
func (f *field) defaultJSON() any {
	if f.shape == shapeInt || f.shape == shapeFloat {
		return json.Number(f.def)
	}
	return f.def
}

// stringSchema is the rule of a string, or of the strings in a list or mapping.
func (f *field) stringSchema() object {
	o := object{{"type", "string"}}
	if f.enum != nil {
		return append(o, member{"enum", f.enum})
	}
	if f.format == nil {
		return o
	}
	if f.format.pattern != "" {
		o = append(o, member{"pattern", f.format.pattern})
	}
	return append(o, member{"maxLength", f.format.max})
}

// about is the documentation of a field with its rules in words.
func (f *field) about() string {
	s := f.doc
	if rule := f.rule(); rule != "" {
		s += " " + rule
	}
	return s
}
