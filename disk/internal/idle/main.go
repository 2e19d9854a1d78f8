// Command idle stands for the guest's binary in an image whose first process
// is a test: the room's guests are built without the rest of the guest.
package main

func main() {}
