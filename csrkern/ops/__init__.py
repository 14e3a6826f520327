"""The operators, one file each: public function, torch registration, autograd, dispatch.

They live one level below the package because a module `csrkern.encode` and a function
`csrkern.encode` cannot share a name: importing the first would hide the second.
"""
