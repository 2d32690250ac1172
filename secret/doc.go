// Package secret reads files that the sops program encrypted for age
// recipients. It decrypts in memory and writes nothing.
//
// It reads the part of the format that such files have: a random data key,
// encrypted with age for each recipient; every value encrypted with AES-256-GCM
// under the data key, with its path as additional data; and an authentication
// code over all values. Its tests hold it against files of sops itself.
package secret
