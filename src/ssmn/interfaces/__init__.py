"""The models under the interfaces of other libraries: one thin file each, none loaded by `import ssmn`."""
